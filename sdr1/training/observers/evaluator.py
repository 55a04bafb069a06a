"""A small evaluation of the current weights while training goes on, in a process of its own."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context

import numpy as np

from sdr1.base.errors import UserError, reason
from sdr1.base.process import end_with_parent, pause, prepare_process
from sdr1.config.training import Config
from sdr1.evaluation.rows import Record
from sdr1.evaluation.sandbox import speaks
from sdr1.models import pipeline_files
from sdr1.training.checkpoint import complete, load
from sdr1.training.loop import Executor
from sdr1.training.observers import journal
from sdr1.training.observers.journal import EVALUATED, EVALUATION

_POLL = 0.2
"""Seconds between looks at the evaluation of the last iteration."""
_log = logging.getLogger("sdr1")


class Evaluator:
    """Context manager, and the journal's source of `eval/<figure>`: each in the row of the iteration that it came in at.

    `first` is what a start owes, as `owed` says. Training waits for that evaluation and for the last iteration's, for as
    long as a worker may take for a call, and for no other. A child that dies or hangs costs the evaluation that it was at.
    """

    def __init__(self, config: Config, first: tuple[int, np.ndarray | None] | None) -> None:
        self._config, self._first = config, first
        self._pending: Future[dict[str, float]] | None = None

    def __enter__(self) -> Evaluator:
        self._start()
        if self._first is not None:
            done, buffer = self._first
            self._submit(buffer, done)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def figures(self, iteration: int, executor: Executor) -> dict[str, float]:
        done = iteration + 1
        last = done == self._config.iterations
        found = self._collect(wait=last or self._first is not None)
        self._first = None
        due = done % self._config.evaluation.every == 0 or last
        # On a machine that is too slow for its rhythm evaluations get rarer.
        if due and self._pending is None:
            buffer = executor.weights().buffer.copy()
            try:
                self._submit(buffer, done)
            except BrokenProcessPool:
                # The child died, at work or between two evaluations.
                self._stop()
                self._start()
                self._submit(buffer, done)
            found |= self._collect(wait=last)
        return found

    def _collect(self, wait: bool) -> dict[str, float]:
        """What has come in by now; with `wait`, within a deadline."""
        if self._pending is None:
            return {}
        end = time.monotonic() + self._config.run.task_timeout
        while wait and not self._pending.done() and time.monotonic() < end:
            pause(_POLL)
        if not (wait or self._pending.done()):
            return {}
        pending, self._pending = self._pending, None
        try:
            return pending.result(timeout=0)
        except Exception as error:
            # Training must not end because what watches it did.
            _log.warning("an evaluation was lost: %s", reason(error))
            return {}

    def _submit(self, buffer: np.ndarray | None, done: int) -> None:
        self._pending = self._pool.submit(evaluate_weights, self._config, buffer, done)

    def _start(self) -> None:
        context = get_context("spawn")
        theirs, self._lifeline = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=end_with_parent, initargs=(theirs,)
        )

    def _stop(self) -> None:
        """The child ends now, also in the middle of its work."""
        self._lifeline.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def owed(config: Config, start: int) -> tuple[int, np.ndarray | None] | None:
    """The iterations applied to, and the weights of, what a run that starts at iteration `start` has to evaluate first.

    One that begins is evaluated before its first iteration: what comes of it is the difference. One that goes on owes what
    was due when it stopped, of the latest checkpoint that is still there. It says so where there is none.
    """
    if start == 0:
        return 0, None
    run, every = config.run.directory, config.evaluation.every
    rows = journal.read(run / journal.NAME)[0] if (run / journal.NAME).exists() else []
    due = range(start - start % every, max(journal.evaluations(rows), default=0), -every)
    if not due or start == config.iterations:
        return None
    saved = {int(folder.name): folder for folder in complete(run)}
    # The row of the last iteration has the figures of its own weights.
    for done in due if start + 1 < config.iterations else ():
        if done in saved:
            with suppress(UserError):
                return done, load(saved[done]).state.result.buffer
    _log.warning(
        "evaluation.every: the evaluation after iteration %d was not done when the run stopped: it is missing",
        due[0],
    )
    return None


def check(config: Config) -> None:
    """Raise UserError when `evaluation.every` is set for a model that cannot read what would be drawn."""
    if config.evaluation.every and not speaks(pipeline_files.tokenizer(config.policy)):
        raise UserError(
            f"evaluation.every: {config.evaluation.every}: evaluations beside training draw the sandbox's captions, which "
            f"{config.policy.model} does not know; set evaluation.every=0, and run `sdr1 evaluate` on its checkpoints"
        )


def names() -> set[str]:
    """Of the figures that an evaluation adds to a row."""
    from sdr1.evaluation.protocols.sandbox import figures_of
    from sdr1.evaluation.sandbox_rows import rows_of
    from sdr1.sandbox.prompts import TOPICS

    rows = rows_of(TOPICS, 1, seed=0)
    nothing: Record = {"unsafe": False, "things": []}
    return {f"{EVALUATION}{figure.name}" for figure in figures_of(rows, {row.id: nothing for row in rows})}


def evaluate_weights(config: Config, buffer: np.ndarray | None, iteration: int) -> dict[str, float]:
    """Figures of the sandbox's protocol on its tuning split, drawn as its evaluations draw (`sandbox_rows.DEPLOYED`),
    not as the policy samples; without a buffer those of the untrained policy."""
    prepare_process(config.run.threads)
    from sdr1.evaluation.protocols.sandbox import figures_of
    from sdr1.evaluation.sandbox import oracle_records
    from sdr1.evaluation.sandbox_rows import rows_of
    from sdr1.models.policy import Policy
    from sdr1.sandbox.prompts import TOPICS

    policy = Policy(config.policy, seed=config.seed)
    if buffer is not None:
        policy.flat.load(buffer)
    rows = rows_of(TOPICS, config.evaluation.images, config.seed, split="tune")
    figures = figures_of(rows, oracle_records(policy.pipeline, rows))
    return {
        EVALUATED: float(iteration),
        **{f"{EVALUATION}{figure.name}": figure.mean() for figure in figures},
    }
