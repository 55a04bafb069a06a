"""The training loop, the same for one process and for a cluster.

    prompts --> GroupTask(iteration, group, prompt, seed, version)
                   |
            rollout workers                  G images of one prompt, by confirmed weights
                   |  trajectory   | images
                   |               v
                   |          reward workers       steered CLIP / HPS --> G rewards
                   v               |
                learner  <---------+       advantages in the group, clipped loss + KL, accumulate;
                   |                       one optimizer step when the minibatch of groups is full
                   +--> versioned weights --> rollout workers

The loop moves tasks and reports; images, trajectories and weights stay behind the executor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sdr1.config import Config
from sdr1.prompts import PromptStream
from sdr1.types import GroupReport, GroupTask, IterationReport, UpdateReport, Weights


class Executor(Protocol):
    """Places the three roles and moves data between them."""

    def publish(self, version: int) -> None:
        """Hand the learner's weights to the rollout workers; later tasks name this version."""

    def submit(self, tasks: Sequence[GroupTask]) -> None:
        """Start making and scoring groups; returns at once where workers run elsewhere."""

    def accumulate(self, task: GroupTask) -> None:
        """Wait until this submitted group is scored and hand it to the learner."""

    def step(self) -> tuple[list[GroupReport], UpdateReport]:
        """One optimizer step, and the reports of the groups accumulated for it."""

    def drain_seconds(self) -> tuple[float, float]:
        """Busy seconds of the rollout and the reward workers since the last call."""

    def images(self, task: GroupTask) -> np.ndarray:
        """Images of a group of the latest submitted tasks, RGB, shape (G, H, W, 3), uint8."""

    def weights(self) -> Weights:
        """The weights published last."""


class Observer(Protocol):
    """Watches a run; every hook may be slow only within bounds, training waits for it."""

    def accumulated(self, task: GroupTask) -> None:
        """A group was handed to the learner."""

    def iteration(self, report: IterationReport, tasks: Sequence[GroupTask], executor: Executor) -> None:
        """An iteration is complete."""


def run(config: Config, stream: PromptStream, executor: Executor, observers: Sequence[Observer]) -> Weights:
    """Train for `config.iterations` and return the final weights.

    Raises:
        TrainingError: a number is not finite, or rho is not 1 before an update.
    """
    executor.publish(0)
    for iteration in range(config.iterations):
        begin = time.perf_counter()
        tasks = stream.tasks(iteration, version=iteration)
        executor.submit(tasks)
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
        rollout_seconds, reward_seconds = executor.drain_seconds()
        report = IterationReport(
            iteration,
            tuple(groups),
            tuple(updates),
            rollout_seconds,
            reward_seconds,
            time.perf_counter() - begin,
        )
        for observer in observers:
            observer.iteration(report, tasks, executor)
    return executor.weights()
