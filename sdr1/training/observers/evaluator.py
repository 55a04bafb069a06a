"""A small evaluation of the current weights while training goes on, in a process of its own."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from sdr1.base.errors import UserError, reason
from sdr1.base.process import end_with_parent, pause, prepare_process
from sdr1.config.training import Config
from sdr1.evaluation.rows import Record
from sdr1.evaluation.sandbox import speaks
from sdr1.models import pipeline_files
from sdr1.training.loop import Executor
from sdr1.training.observers.journal import EVALUATED, EVALUATION

_POLL = 0.2
"""Seconds between looks at the evaluation of the last iteration."""
_log = logging.getLogger("sdr1")


class Evaluator:
    """Context manager, and the journal's source of `eval/<figure>`: each in the row of the iteration that it came in at.

    A run that begins, at `start` 0, is evaluated before its first iteration: what came of it is the difference. Training
    waits for that evaluation and for the last iteration's, for as long as a worker may take for a call, and for no other.
    A child that dies or hangs costs the evaluation that it was at.
    """

    def __init__(self, config: Config, start: int) -> None:
        self._config, self._start_at = config, start
        self._pending: Future[dict[str, float]] | None = None

    def __enter__(self) -> Evaluator:
        self._start()
        if self._start_at == 0:
            self._submit(None, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def figures(self, iteration: int, executor: Executor) -> dict[str, float]:
        done = iteration + 1
        last = done == self._config.iterations
        found = self._collect(wait=last or iteration == 0)
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
