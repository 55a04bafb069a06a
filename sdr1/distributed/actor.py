"""What every actor answers, whatever its role."""

from __future__ import annotations

import ray


class Actor:
    """A role imports its core class in its own process: libraries that only another role needs cost seconds of recovery."""

    def node(self) -> str:
        """The node it runs on, in hexadecimal; an answer says that it is ready."""
        return ray.get_runtime_context().get_node_id()
