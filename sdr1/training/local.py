"""The executor of one process: rollout, reward and learner take turns, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sdr1.base.process import prepare_process
from sdr1.base.records import (
    GroupReport,
    GroupTask,
    LearnerState,
    Rollout,
    Scores,
    UpdateReport,
    Usage,
    Weights,
)
from sdr1.config.training import Config
from sdr1.models.policy import Policy
from sdr1.rewards.scorer import Scorer
from sdr1.training import objectives
from sdr1.training.learner import Learner


class LocalExecutor:
    """Rollouts sample from the learner's own policy; a task's groups are made before any update changes it."""

    def __init__(self, config: Config, state: LearnerState | None = None) -> None:
        prepare_process(config.run.threads)
        self._config = config
        self._policy = Policy(
            config.policy,
            device=config.learner.device,
            seed=config.seed,
            reference=config.learner.kl_weight > 0,
        )
        self._objective = objectives.kind(config)(config, self._policy)
        self._scorer = Scorer(config.reward)
        self._learner = Learner(config, self._policy)
        if state is not None:
            self._learner.restore(state)
        self._groups: dict[GroupTask, tuple[Rollout, Scores]] = {}
        self._reports: list[GroupReport] = []
        self._seconds = [0.0, 0.0]

    def publish(self, version: int) -> None:
        self._weights = self._learner.weights(version)

    def submit(self, tasks: Sequence[GroupTask]) -> None:
        oldest = tasks[0].iteration - self._config.rollout.max_staleness
        self._groups = {task: group for task, group in self._groups.items() if task.iteration >= oldest}
        # With staleness, and so after a resume too, the tasks may name weights older than the learner's own.
        trained = None
        if tasks[0].version != self._weights.version or self._config.rollout.weights == "ema":
            trained = self._policy.flat.snapshot(self._weights.version)
            self._policy.flat.load(self._learner.weights(tasks[0].version).buffer)
        for task in tasks:
            rollout = self._objective.rollout(task)
            scores = self._scorer.score(rollout.images, task.prompt)
            self._groups[task] = rollout, scores
            self._seconds[0] += rollout.seconds
            self._seconds[1] += scores.seconds
        if trained is not None:
            self._policy.flat.load(trained.buffer)

    def accumulate(self, task: GroupTask) -> None:
        rollout, scores = self._groups[task]
        self._reports.append(self._learner.accumulate(task, rollout.experience, scores))

    def step(self) -> tuple[list[GroupReport], UpdateReport]:
        reports, self._reports = self._reports, []
        return reports, self._learner.step()

    def usage(self) -> Usage:
        (rollout, reward), self._seconds = self._seconds, [0.0, 0.0]
        return Usage(rollout, reward, 1, 1)

    def images(self, task: GroupTask) -> np.ndarray:
        return self._groups[task][0].images

    def weights(self) -> Weights:
        return self._learner.result(self._weights.version)

    def snapshot(self, iteration: int) -> Callable[[], LearnerState]:
        state = self._learner.state(iteration)
        return lambda: state

    def recover(self, reason: str) -> int:
        raise AssertionError("the learner lives in this process: it is lost only with the run")
