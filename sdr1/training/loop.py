"""The training loop, the same for one process and for a cluster.

    prompts --> GroupTask(iteration, group, prompt, seed, version)
                   |
            rollout workers                  G images of one prompt, by confirmed weights
                   |  experience   | images
                   |               v
                   |          reward workers       steered CLIP / HPS --> G rewards
                   v               |
                learner  <---------+       advantages in the group, the objective's loss, accumulate;
                   |                       one optimizer step when the minibatch of groups is full
                   +--> versioned weights --> rollout workers

The loop moves tasks and reports; images, experience and weights stay behind the executor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from sdr1.base.errors import LearnerLost
from sdr1.base.records import (
    GroupReport,
    GroupTask,
    IterationReport,
    LearnerState,
    UpdateReport,
    Usage,
    Weights,
)
from sdr1.config.training import Config
from sdr1.prompts.stream import PromptStream
from sdr1.training.metrics import summarize


class Executor(Protocol):
    """Places the three roles and moves data between them."""

    def publish(self, version: int) -> None:
        """Hand the learner's weights to the rollout workers; later tasks name this version."""

    def submit(self, tasks: Sequence[GroupTask]) -> None:
        """Start making and scoring groups; returns at once where workers run elsewhere."""

    def accumulate(self, task: GroupTask) -> None:
        """Wait until this submitted group is scored and hand it to the learner, after the groups handed before."""

    def step(self) -> tuple[list[GroupReport], UpdateReport]:
        """One optimizer step, and the reports of the groups accumulated for it."""

    def usage(self) -> Usage:
        """What the workers did since the last call."""

    def images(self, task: GroupTask) -> np.ndarray | None:
        """Images of a group of the latest submitted tasks, RGB, shape (G, H, W, 3), uint8; None if lost since."""

    def weights(self) -> Weights:
        """What a run leaves that ends with the weights published last."""

    def snapshot(self, iteration: int) -> Callable[[], LearnerState]:
        """Take the learner's state after `iteration` iterations; the result fetches it, in any thread, later."""

    def recover(self, reason: str) -> int:
        """After LearnerLost: a new learner from the last state there is; returns the iteration it stands before."""


class Observer(Protocol):
    """Watches a run; every hook may be slow only within bounds, training waits for it."""

    def accumulated(self, task: GroupTask) -> None:
        """A group was handed to the learner."""

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        """An iteration is complete; `metrics` as `sdr1.training.metrics.summarize` names them."""


def run(
    config: Config,
    stream: PromptStream,
    executor: Executor,
    observers: Sequence[Observer],
    start: int = 0,
    is_enough: Callable[[int], bool] = lambda done: False,
) -> Weights:
    """Train from iteration `start` up to `config.iterations`, or to fewer that are enough; return the final weights.

    When the learner is lost, iterations since its last snapshot are made again, with the same bits; observers see
    them again.

    Raises:
        TrainingError: a number is not finite, rho is not 1 before an update, or workers keep dying.
    """
    staleness = config.rollout.max_staleness
    iteration = start
    submitted: dict[int, list[GroupTask]] | None = None
    while True:
        try:
            if submitted is None:
                for version in range(max(0, iteration - staleness), iteration + 1):
                    executor.publish(version)
                submitted = {}
            if iteration == config.iterations or is_enough(iteration):
                return executor.weights()
            begin = time.perf_counter()
            for near in range(iteration, min(iteration + staleness + 1, config.iterations)):
                if near not in submitted:
                    submitted[near] = stream.tasks(near, version=max(0, near - staleness))
                    executor.submit(submitted[near])
            tasks = submitted[iteration]
            groups, updates = [], []
            for first in range(0, len(tasks), config.groups_per_update):
                for task in tasks[first : first + config.groups_per_update]:
                    executor.accumulate(task)
                    for observer in observers:
                        observer.accumulated(task)
                reports, update = executor.step()
                groups += reports
                updates.append(update)
            executor.publish(iteration + 1)
            seconds = time.perf_counter() - begin
            report = IterationReport(iteration, tuple(groups), tuple(updates), executor.usage(), seconds)
            metrics = summarize(report, config)
            for observer in observers:
                observer.iteration(iteration, metrics, tasks, executor)
            del submitted[iteration]
            iteration += 1
        except LearnerLost as error:
            iteration, submitted = executor.recover(str(error)), None
