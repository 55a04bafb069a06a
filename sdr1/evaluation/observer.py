"""A small evaluation of the current weights while training goes on, in a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from sdr1.config import Config
from sdr1.loop import Executor
from sdr1.runtime import prepare_process
from sdr1.types import GroupTask

_log = logging.getLogger("sdr1")


class Evaluator:
    """Context manager and observer; stands before the journal in their order.

    Its figures arrive in the journal as `eval/<figure>`, in the row of the iteration during which they were ready;
    `eval/iteration` says whose weights they are of (as a checkpoint counts: iterations applied). Training never waits,
    except for the last iteration's.
    """

    def __init__(self, config: Config, ready: dict[str, float]) -> None:
        self._config, self._ready = config, ready
        self._pending: Future[dict[str, float]] | None = None

    def __enter__(self) -> Evaluator:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def accumulated(self, task: GroupTask) -> None:
        pass

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        done = iteration + 1
        last = done == self._config.iterations
        self._collect(wait=last)
        due = done % self._config.evaluation.every == 0 or last
        # On a machine that is too slow for its rhythm evaluations get rarer.
        if due and self._pending is None:
            self._pending = self._pool.submit(
                evaluate_weights, self._config, executor.weights().buffer.copy(), done
            )
            self._collect(wait=last)

    def _collect(self, wait: bool) -> None:
        if self._pending is None or not (wait or self._pending.done()):
            return
        pending, self._pending = self._pending, None
        try:
            self._ready.update(pending.result())
        except Exception as error:
            # Training must not end because its observer did.
            _log.warning(
                "an evaluation was lost: %s", (str(error).strip() or repr(error)).split("\n")[0][:200]
            )


def evaluate_weights(config: Config, buffer: np.ndarray, iteration: int) -> dict[str, float]:
    """Figures of the sandbox's protocol on its tuning split, with the policy's own sampler made deterministic."""
    prepare_process(config.run.threads)
    from sdr1.evaluation.protocols import SANDBOX_TOPICS, sandbox_figures
    from sdr1.evaluation.sandbox import oracle_records
    from sdr1.evaluation.sandbox_rows import rows_of
    from sdr1.policy import Policy

    policy = Policy(config.policy, seed=config.seed)
    policy.flat.load(buffer)
    rows = rows_of(SANDBOX_TOPICS, config.evaluation.images, config.seed, split="tune")
    figures = sandbox_figures(rows, oracle_records(policy.pipeline, rows))
    return {
        "eval/iteration": float(iteration),
        **{f"eval/{figure.name}": figure.mean() for figure in figures},
    }
