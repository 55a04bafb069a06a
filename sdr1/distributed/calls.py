"""The calls in flight: each ends in a result, or in the loss of its worker or of an object it needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from sdr1.base.errors import LearnerLost, TrainingError, UserError
from sdr1.base.process import pause, raise_if_stopped
from sdr1.distributed.actor import Handle, Ref, T

TICK = 1.0
"""Seconds between looks at deadlines and at the fleets while nothing happens."""
MAX_REMAKES = 4
"""Times that one piece of work may be lost before the run stops and names it."""
_LOOKS = 10
"""Looks, within a start timeout, at whether an actor still waits for its place."""


class Stalled(ray.exceptions.RayError):
    """A worker did not answer before its deadline: frozen, wedged, or cut off."""


@dataclass
class _Call:
    done: Callable[[Any], None]
    lost: Callable[[Exception], None]
    timeout: float
    deadline: float
    unplaced: Sequence[Handle]
    """Actors whose place it waits for, as far as is known; its time begins when they have it."""


class Calls:
    """Waits for whichever call ends first, and hands its result or its loss to whoever made it."""

    def __init__(self, timeout: float, start_timeout: float) -> None:
        self._timeout, self._start_timeout = timeout, start_timeout
        self._calls: dict[Ref[Any], _Call] = {}

    def add(
        self,
        ref: Ref[T],
        done: Callable[[T], None],
        lost: Callable[[Exception], None],
        *,
        starting: Sequence[Handle] = (),
    ) -> None:
        """Watch a small result; `lost` takes Ray's error, or `Stalled` after the timeout.

        `starting` are actors of which this is the first answer: it has the start timeout to import libraries and read
        weights, counted from when all of them have a process. Waiting for resources before that has no end.
        """
        timeout = self._start_timeout if starting else self._timeout
        first = timeout / _LOOKS if starting else timeout
        self._calls[ref] = _Call(done, lost, timeout, time.monotonic() + first, starting)

    def wait(self) -> None:
        """Act on the calls that have ended; returns at the latest after a tick.

        Raises what an actor raised on purpose, and what the callbacks raise.
        """
        raise_if_stopped()
        if not self._calls:
            # Ray answers at once that none of none is ready.
            pause(TICK)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=TICK)
        for ref in ready:
            call = self._calls.pop(ref)
            try:
                value = get(ref)
            except (ray.exceptions.RayError, LearnerLost) as error:
                # A learner's rank says that it lost its peers; that too may be news of a learner replaced since.
                call.lost(error)
            else:
                call.done(value)
        now = time.monotonic()
        for ref, call in [each for each in self._calls.items() if each[1].deadline < now]:
            if not call.unplaced:
                del self._calls[ref]
                call.lost(Stalled(f"no answer for {call.timeout:.0f} s"))
            elif all(actor.has_process() for actor in call.unplaced):
                call.unplaced, call.deadline = (), now + call.timeout
            else:
                call.deadline = now + call.timeout / _LOOKS


def get(ref: Ref[T]) -> T:
    """Fetch; what an actor raised on purpose is raised here as itself, not wrapped in Ray's error."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if error.cause is not None else error from None


def is_lost_object(error: Exception) -> bool:
    """Whether an argument was gone, while the worker itself is well."""
    return isinstance(error, ray.exceptions.ObjectLostError)


def check_losses(what: str, losses: int, error: Exception) -> None:
    """Raise TrainingError for a piece of work that was lost more often than by bad luck."""
    if losses > MAX_REMAKES:
        raise TrainingError(
            f"{what} was lost {losses} times, perhaps it kills its worker; the last: {first_line(error)}"
        )


def raised_on_purpose(error: Exception) -> UserError | TrainingError | None:
    """The error that a dead actor's constructor raised for people to read; Ray keeps it as a traceback's text alone."""
    for kind in (UserError, TrainingError):
        _, found, told = str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
        if found and isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
            return kind(told.strip())
    return None


def first_line(error: Exception) -> str:
    """One line: what was raised in the worker's start, else Ray's own first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "creation task" in lines[0] else lines[0]
