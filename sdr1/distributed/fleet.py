"""An elastic set of equal workers: joins, idles, leaves with its node, is replaced when it dies."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic

from sdr1.base.errors import TrainingError
from sdr1.config.workers import Elastic
from sdr1.distributed.actor import Handle
from sdr1.distributed.calls import Calls, Stalled, first_line, raised_on_purpose
from sdr1.distributed.placement import H, Placement, Waiting

MAX_DEATHS = 6
"""Deaths in a row, beyond one for each worker, of workers that finish no call, which stop a run."""
_LONGEST_BACKOFF, _LOOK_EVERY = 30.0, 2.0
_log = logging.getLogger("sdr1")


@dataclass(eq=False)
class Worker(Generic[H]):
    """An actor, and what the driver knows of it."""

    actor: H
    node: str | None = None
    """None while it waits for resources or starts."""
    weights: int | None = None
    """Checksum of the weights that it has confirmed: after a lost learner a version may have other bits."""
    proven: bool = False
    """It has finished a call: its death is bad luck, or its task's fault, which the task's own limit covers."""
    leaving: bool = False
    """Its node drains: it may finish its call, and its successor is asked for already."""


class Fleet(Generic[H]):
    """Asks Ray for `size.max` actors at once: pending ones are the autoscaler's demand, and join when they start."""

    def __init__(
        self, name: str, place: Placement[H], size: Elastic, calls: Calls, joined: Callable[[], None]
    ) -> None:
        self.name, self.size = name, size
        self.idle: deque[Worker[H]] = deque()
        self._place, self._calls, self._on_join = place, calls, joined
        self._workers: set[Worker[H]] = set()
        self._due: list[float] = []
        self._deaths, self._served = 0, False
        self.losses = Counter[str]()
        """Workers that were replaced, by cause: died, stalled, left."""
        self._looked = time.monotonic()
        self._waiting = Waiting(name, place)
        for _ in range(size.max):
            self._start()

    @property
    def in_service(self) -> int:
        return sum(worker.node is not None for worker in self._workers)

    def release(self, worker: Worker[H]) -> None:
        """The worker has finished a call and is free, unless it has to leave."""
        self._deaths, worker.proven = 0, True
        self._rest(worker)

    def evict(self, worker: Worker[H], error: Exception) -> None:
        """Replace a worker that died or stalled, later and later when that goes on.

        Raises:
            UserError, TrainingError: what the first workers raised on purpose in their start: others would raise it too.
            TrainingError: new workers of this fleet die one after the other without finishing anything.
        """
        if worker not in self._workers:
            return
        if not self._served and (meant := raised_on_purpose(error)):
            raise meant from error
        self._remove(worker)
        # Others may have died with it; a task must not be given to one of them after the other.
        self._ask_idle()
        if worker.leaving:
            return
        self._deaths += not worker.proven
        self.losses["stalled" if isinstance(error, Stalled) else "died"] += 1
        reason = first_line(error)
        _log.warning("one of the %s was lost (%s); it is replaced", self.name, reason)
        if self._deaths > MAX_DEATHS + self.size.max:
            raise TrainingError(
                f"{self.name}: {self._deaths} died in a row without finishing a call; the last: {reason}"
            )
        self._due.append(time.monotonic() + backoff(self._deaths))

    def tick(self) -> None:
        """Start replacements that are due, let draining nodes' workers go, see that idle ones live, say what is missing."""
        now = time.monotonic()
        for due in [due for due in self._due if due <= now]:
            self._due.remove(due)
            self._start()
        if now - self._looked > _LOOK_EVERY:
            self._looked = now
            leaving = _draining_nodes()
            for worker in [w for w in self._workers if w.node in leaving and not w.leaving]:
                _log.warning("one of the %s leaves with its draining node", self.name)
                worker.leaving = True
                self.losses["left"] += 1
                if worker in self.idle:
                    self._remove(worker)
                self._start()
            self._ask_idle()
        self._waiting.tick(self.in_service, self.size.min)

    def close(self) -> None:
        """Let all workers go, on a cluster that goes on."""
        for worker in list(self._workers):
            self._remove(worker)

    def _start(self) -> None:
        worker = Worker(self._place())
        self._workers.add(worker)
        self._ask(worker, starting=(worker.actor,))

    def _ask(self, worker: Worker[H], *, starting: Sequence[Handle] = ()) -> None:
        """The worker idles once it has answered."""

        def answered(node: str) -> None:
            worker.node, self._served = node, True
            self._rest(worker)
            self._on_join()

        self._calls.add(worker.actor.node(), answered, partial(self.evict, worker), starting=starting)

    def _ask_idle(self) -> None:
        """Nobody hears of an idle worker's death otherwise."""
        while self.idle:
            self._ask(self.idle.popleft())

    def _rest(self, worker: Worker[H]) -> None:
        if worker.leaving:
            self._remove(worker)
        elif worker in self._workers:
            self.idle.append(worker)

    def _remove(self, worker: Worker[H]) -> None:
        self._workers.discard(worker)
        if worker in self.idle:
            self.idle.remove(worker)
        worker.actor.kill()


def backoff(deaths: int) -> float:
    """Seconds to wait before a new start after so many deaths in a row that proved nothing."""
    return min(_LONGEST_BACKOFF, 0.25 * 2**deaths)


def _draining_nodes() -> set[str]:
    """Nodes about to go, in hexadecimal; Ray shows them nowhere public."""
    from ray._private import state

    try:
        return set(state.state.get_draining_nodes())
    except AttributeError:
        return set()
