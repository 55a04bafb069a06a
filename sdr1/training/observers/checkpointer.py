"""Writes checkpoints beside training, and keeps the newest and the best of them."""

from __future__ import annotations

import logging
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from sdr1.base.errors import TrainingError, UserError
from sdr1.base.process import raise_if_stopped
from sdr1.base.records import GroupTask, LearnerState, Weights
from sdr1.config.training import Config
from sdr1.training import checkpoint
from sdr1.training.loop import Executor
from sdr1.training.observers.journal import EVALUATION, Journal

_log = logging.getLogger("sdr1")


class Checkpointer:
    """Observer that takes a snapshot after an iteration and lets a thread write it; training does not wait."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self._config, self._journal = config, journal
        self._pending: tuple[Callable[[], LearnerState], dict[str, float]] | None = None
        self._error: OSError | None = None
        self._busy = self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    def __enter__(self) -> Checkpointer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Long enough for a big set on a slow disk; after SIGTERM the platform's own limit is shorter.
        self._thread.join(timeout=600)

    def accumulated(self, task: GroupTask) -> None:
        raise_if_stopped()

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        self._raise_problem()
        done = iteration + 1
        ends = done == self._config.iterations or self._journal.stopped_by(done) is not None
        if done % self._config.checkpoint.every and not ends:
            return
        fetch = executor.snapshot(done)
        with self._changed:
            # The newest wins: on a slow disk checkpoints get rarer, training does not get slower.
            self._pending = fetch, metrics
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until everything taken is written; False when time runs out."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._pending is None and not self._busy, timeout)
        self._raise_problem()
        return done

    def _raise_problem(self) -> None:
        if self._error is not None:
            raise TrainingError(
                f"run.directory: {self._config.run.directory}: a checkpoint could not be written: {self._error}; the "
                "earlier ones are intact: make room and go on with --resume"
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                if self._pending is None:
                    return
                (fetch, metrics), self._pending, self._busy = self._pending, None, True
            try:
                checkpoint.save(self._config.run.directory, fetch(), self._config, metrics)
                self._prune()
            except OSError as error:
                self._error = error
            except Exception as error:
                # The snapshot died with its learner; the next one will do.
                _log.warning("a checkpoint was skipped: %s", str(error).split("\n")[0])
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def best(self) -> Weights | None:
        """The weights that are best by `checkpoint.best`, of those on disk whose value is known."""
        values = self._values(self._facts())
        for folder in sorted(values, key=lambda folder: values[folder], reverse=True):
            try:
                return checkpoint.load(folder).state.result
            except UserError as error:
                _log.warning("%s; taking the next best", error)
        return None

    def _prune(self) -> None:
        facts = self._facts()
        kept = {*list(facts)[-self._config.checkpoint.keep :], *self._waiting(facts)}
        if values := self._values(facts):
            kept.add(max(values, key=lambda folder: values[folder]))
        for folder in facts.keys() - kept:
            shutil.rmtree(folder, ignore_errors=True)

    def _facts(self) -> dict[Path, checkpoint.CheckpointFacts]:
        # A damaged one is no checkpoint: it takes no other's place, and is left to whoever wants to look at it.
        facts = {}
        for folder in checkpoint.complete(self._config.run.directory):
            with suppress(UserError):
                facts[folder] = checkpoint.facts_of(folder)
        return facts

    def _values(self, facts: dict[Path, checkpoint.CheckpointFacts]) -> dict[Path, float]:
        """How good each is by `checkpoint.best`, where that is known; more is better."""
        best = self._config.checkpoint.best or ""
        sign, name = (-1 if best.startswith("-") else 1), best.removeprefix("-")
        evaluated = self._journal.evaluations() if name.startswith(EVALUATION) else {}
        found = {
            folder: evaluated.get(held.iteration, held.metrics).get(name, math.nan)
            for folder, held in facts.items()
        }
        return {folder: sign * value for folder, value in found.items() if math.isfinite(value)}

    def _waiting(self, facts: dict[Path, checkpoint.CheckpointFacts]) -> set[Path]:
        """Those that may turn out to be the best: their evaluation may be under way."""
        if not (self._config.checkpoint.best or "").removeprefix("-").startswith(EVALUATION):
            return set()
        every, latest = self._config.evaluation.every, max(self._journal.evaluations(), default=0)
        return {
            folder
            for folder, held in facts.items()
            if held.iteration > latest and held.iteration % every == 0
        }
