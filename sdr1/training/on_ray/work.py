"""What the driver knows of the work under way on a cluster: groups, published weights, calls of the learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, NamedTuple

from sdr1.base.records import GroupTask, Scores, Weights
from sdr1.distributed.actor import Ref, T
from sdr1.training.on_ray.handles import Made


class State(Enum):
    """What became of a group so far; it goes back to WAITING whenever what was made of it is lost."""

    WAITING = auto()
    ROLLING_OUT = auto()
    MADE = auto()
    SCORING = auto()
    SCORED = auto()
    HANDED = auto()
    DONE = auto()


@dataclass(eq=False)
class Group:
    """One copy of a group on its way. It has at most one call under way, which touches nothing but this record.

    After a recovery the same task gets a new record; what still comes in for the old one finds nobody interested.
    """

    task: GroupTask
    state: State = State.WAITING
    made: Made | None = None
    scores: Ref[Scores] | None = None
    losses: int = 0


class Published(NamedTuple):
    """A version of the weights."""

    weights: Ref[Weights]
    checksum: int


@dataclass(eq=False)
class Answer(Generic[T]):
    """Of the learner's ranks to a call: the values of all of them, or the first error, once it has ended."""

    values: list[T] = field(default_factory=list)
    error: Exception | None = None
    ended: bool = False
