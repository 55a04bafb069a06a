"""The executor of one process: rollout, reward and learner take turns, without Ray."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdr1.config import Config
from sdr1.learner import Learner
from sdr1.policy import Policy
from sdr1.rewards.scorer import Scorer
from sdr1.runtime import prepare_process
from sdr1.types import GroupReport, GroupTask, Rollout, Scores, UpdateReport, Weights


class LocalExecutor:
    """Rollouts sample from the learner's own policy; a task's groups are made before any update changes it."""

    def __init__(self, config: Config) -> None:
        prepare_process(config.run.threads)
        self._config = config
        self._policy = Policy(
            config.policy,
            device=config.learner.device,
            seed=config.seed,
            reference=config.learner.kl_weight > 0,
        )
        self._scorer = Scorer(config.reward)
        self._learner = Learner(config, self._policy)
        self._groups: dict[GroupTask, tuple[Rollout, Scores]] = {}
        self._reports: list[GroupReport] = []
        self._seconds = [0.0, 0.0]

    def publish(self, version: int) -> None:
        self._weights = self._learner.weights(version)

    def submit(self, tasks: Sequence[GroupTask]) -> None:
        self._groups = {}
        for task in tasks:
            rollout = self._policy.rollout(
                task, self._config.rollout.group_size, with_reference=self._config.has_kl(task.prompt.label)
            )
            scores = self._scorer.score(rollout.images, task.prompt)
            self._groups[task] = rollout, scores
            self._seconds[0] += rollout.seconds
            self._seconds[1] += scores.seconds

    def accumulate(self, task: GroupTask) -> None:
        rollout, scores = self._groups[task]
        self._reports.append(self._learner.accumulate(task, rollout.trajectory, scores))

    def step(self) -> tuple[list[GroupReport], UpdateReport]:
        reports, self._reports = self._reports, []
        return reports, self._learner.step()

    def drain_seconds(self) -> tuple[float, float]:
        (rollout, reward), self._seconds = self._seconds, [0.0, 0.0]
        return rollout, reward

    def images(self, task: GroupTask) -> np.ndarray:
        return self._groups[task][0].images

    def weights(self) -> Weights:
        return self._weights
