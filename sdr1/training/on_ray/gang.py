"""All ranks of the learner as one: they start together, get every call together, and end together."""

from __future__ import annotations

from collections.abc import Callable

from sdr1.distributed.actor import Ref, T
from sdr1.training.on_ray.handles import LearnerHandle


class Gang:
    """The ranks' actors. Several find each other by references alone, so that the driver never waits for one of them."""

    def __init__(self, make: Callable[[], LearnerHandle], size: int) -> None:
        self.ranks = [make() for _ in range(size)]
        self.joined: list[Ref[None]] = []
        """Answers that say that the ranks have met; a call is in vain before."""
        if size > 1:
            meeting = self.first.meet([rank.node() for rank in self.ranks])
            self.joined = [each.join(meeting, rank) for rank, each in enumerate(self.ranks)]

    @property
    def first(self) -> LearnerHandle:
        """Rank 0, which speaks for all of them."""
        return self.ranks[0]

    @property
    def others(self) -> list[LearnerHandle]:
        return self.ranks[1:]

    def call(self, call: Callable[[LearnerHandle], Ref[T]]) -> list[Ref[T]]:
        """The same call on every rank, rank 0's result first."""
        return [call(rank) for rank in self.ranks]

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
