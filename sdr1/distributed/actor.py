"""What every actor answers, whatever its role, and what the driver holds of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ray

T = TypeVar("T")

if TYPE_CHECKING:

    class Ref(Generic[T]):
        """A result that is under way or lies in a node's store; Ray's own class has no types here."""

else:
    Ref = ray.ObjectRef


class Actor:
    """A role imports its core class in its own process: libraries that only another role needs cost seconds of recovery."""

    def node(self) -> str:
        """The node it runs on, in hexadecimal; an answer says that it is ready."""
        return ray.get_runtime_context().get_node_id()


class Handle:
    """An actor as the driver holds it; a role's own handle adds the role's calls with their types."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def node(self) -> Ref[str]:
        return self._actor.node.remote()

    def kill(self) -> None:
        ray.kill(self._actor)

    def has_process(self) -> bool:
        """Whether the cluster had room for it: it starts, or has started. Ray shows it nowhere public."""
        from ray._private import state

        # Not `Pid`: when the node dies during the start Ray takes the address back, and only that.
        return bool(state.actors(self._actor._actor_id.hex()).get("Address", {}).get("Port"))
