"""Writes checkpoints beside training, and keeps the newest and the best of them."""

from __future__ import annotations

import difflib
import logging
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from sdr1.base.errors import TrainingError, UserError
from sdr1.base.process import raise_if_stopped
from sdr1.base.records import GroupTask, LearnerState
from sdr1.config.training import Config
from sdr1.training import checkpoint
from sdr1.training import metrics as names_of_metrics
from sdr1.training.loop import Executor
from sdr1.training.observers.journal import Journal
from sdr1.training.stop import ends

_log = logging.getLogger("sdr1")


def check(config: Config) -> None:
    """Raise UserError when the config names a metric that no iteration of this run has.

    Those of evaluations are known when the first of them is there.
    """
    known = names_of_metrics.names(config)
    for field, name in config.named_metrics:
        if name not in known and not name.startswith("eval/"):
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)
            raise UserError(f"{field}: {name!r}: this run has no such metric; use e.g. {', '.join(near)}")


class Checkpointer:
    """Observer that takes a snapshot after an iteration and lets a thread write it; training does not wait."""

    def __init__(self, config: Config, journal: Journal) -> None:
        self._config, self._journal = config, journal
        self._pending: tuple[Callable[[], LearnerState], dict[str, float]] | None = None
        self._error: OSError | None = None
        self._busy = self._closing = self._warned = False
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
        if done % self._config.checkpoint.every and not ends(self._config, done, self._journal.rows):
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

    def best(self) -> checkpoint.Checkpoint | None:
        """The one that is best by `checkpoint.best`; None if nobody asked, or no value is known.

        Raises:
            UserError: it cannot be read.
        """
        values = self._values(self._facts())
        return checkpoint.load(max(values, key=lambda folder: values[folder])) if values else None

    def _prune(self) -> None:
        facts = self._facts()
        kept = set(list(facts)[-self._config.checkpoint.keep :])
        if self._config.checkpoint.best is not None:
            kept |= self._best(facts, self._config.checkpoint.best.removeprefix("-"))
        for folder in facts.keys() - kept:
            shutil.rmtree(folder, ignore_errors=True)

    def _facts(self) -> dict[Path, checkpoint.Facts]:
        # A damaged one is no checkpoint: it takes no other's place, and is left to whoever wants to look at it.
        facts = {}
        for folder in checkpoint.complete(self._config.run.directory):
            with suppress(UserError):
                facts[folder] = checkpoint.facts_of(folder)
        return facts

    def _values(self, facts: dict[Path, checkpoint.Facts]) -> dict[Path, float]:
        """How good each is by `checkpoint.best`, where it is known; more is better."""
        best = self._config.checkpoint.best
        if best is None:
            return {}
        sign, evaluated = -1 if best.startswith("-") else 1, self._journal.evaluations()
        values: dict[Path, float] = {}
        for folder, held in facts.items():
            found = {**held.metrics, **evaluated.get(held.iteration, {})}
            value = found.get(best.removeprefix("-"), math.nan)
            if math.isfinite(value):
                values[folder] = sign * value
        return values

    def _best(self, facts: dict[Path, checkpoint.Facts], name: str) -> set[Path]:
        """The best by a metric, and those that may turn out to be it."""
        values, evaluated = self._values(facts), self._journal.evaluations()
        kept: set[Path] = set()
        if name.startswith("eval/"):
            # An evaluation may still be under way.
            every, latest = self._config.evaluation.every, max(evaluated, default=0)
            kept = {f for f, held in facts.items() if held.iteration > latest and held.iteration % every == 0}
        if values:
            kept.add(max(values, key=lambda folder: values[folder]))
        elif facts and evaluated and not self._warned:
            self._warned = True
            _log.warning(
                "checkpoint.best: %s: no such metric so far, no best checkpoint is kept; there are %s",
                name, ", ".join(sorted(key for key in evaluated[max(evaluated)] if key.startswith("eval/"))),
            )  # fmt: skip
        return kept
