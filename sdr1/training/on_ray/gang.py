"""All ranks of the learner as one: they start together, get every call together, and end together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray import ObjectRef


class Gang:
    """The ranks' actors. Several find each other by references alone, so that the driver never waits for one of them."""

    def __init__(self, make: Callable[[], Any], size: int) -> None:
        self.actors = [make() for _ in range(size)]
        self.joined: list[ObjectRef] = []
        """Answers that say that the ranks have met; a call is in vain before."""
        if size > 1:
            meeting = self.first.meet.remote(*[actor.node.remote() for actor in self.actors])
            self.joined = [actor.join.remote(meeting, rank) for rank, actor in enumerate(self.actors)]

    @property
    def first(self) -> Any:
        """Rank 0, which speaks for all of them."""
        return self.actors[0]

    @property
    def others(self) -> list[Any]:
        return self.actors[1:]

    def call(self, method: str, *arguments: Any) -> list[ObjectRef]:
        """The same call on every rank, rank 0's result first."""
        return [getattr(actor, method).remote(*arguments) for actor in self.actors]

    def kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
