"""The three roles as Ray actors, each a thin wrapper of a core class."""

from __future__ import annotations

import numpy as np
import ray
from torch.distributed import TCPStore

from sdr1.base.process import prepare_process
from sdr1.base.records import (
    Experience,
    GroupReport,
    GroupTask,
    LearnerState,
    Prompt,
    Rollout,
    Scores,
    UpdateReport,
    Weights,
)
from sdr1.config.training import Config
from sdr1.distributed.actor import Actor
from sdr1.training.ranks import LOOPBACK, Meeting, join, open_meeting


class RolloutActor(Actor):
    """Consumes tasks, produces experience and images; blocks on nothing but its own device."""

    def __init__(self, config: Config) -> None:
        from sdr1.models.policy import Policy
        from sdr1.training import objectives

        prepare_process(config.run.threads)
        self._policy = Policy(
            config.policy,
            device=config.rollout.device,
            seed=config.seed,
            reference=config.learner.kl_weight > 0,
        )
        self._objective = objectives.kind(config)(config, self._policy)

    def load(self, weights: Weights) -> int:
        """Load published weights; the checksum of what is in place afterwards confirms them."""
        return self._policy.flat.load(weights.buffer)

    def rollout(self, task: GroupTask) -> Rollout:
        return self._objective.rollout(task)


class RewardActor(Actor):
    """Consumes images, produces scores."""

    def __init__(self, config: Config) -> None:
        from sdr1.rewards.scorer import Scorer

        prepare_process(config.run.threads)
        self._scorer = Scorer(config.reward)

    def score(self, images: np.ndarray, prompt: Prompt) -> Scores:
        return self._scorer.score(images, prompt)


class LearnerActor(Actor):
    """One rank of the learner: consumes scored groups in order, produces reports and, after each iteration, weights.

    With several ranks `meet` and `join` come first; then every rank gets every call, and blocks in `accumulate` and
    `step` until its peers have come as far.
    """

    def __init__(self, config: Config, state: LearnerState | None) -> None:
        from sdr1.training.learner import Learner

        prepare_process(config.run.threads)
        self._groups_per_update = config.groups_per_update
        self._config = config
        self._learner = Learner(config)
        self._store: TCPStore | None = None
        if state is not None:
            self._learner.restore(state)

    def meet(self, *nodes: str) -> Meeting:
        """Rank 0 opens the meeting of the ranks on these nodes."""
        host = LOOPBACK if len(set(nodes)) == 1 else ray.util.get_node_ip_address()
        meeting, self._store = open_meeting(host, len(nodes), self._config.run.task_timeout)
        return meeting

    def join(self, meeting: Meeting, rank: int) -> None:
        """Wait for the other ranks; from then on this one does its share only."""
        host = LOOPBACK if meeting.host == LOOPBACK else ray.util.get_node_ip_address()
        options = self._config.learner.device, self._config.run.task_timeout, self._store
        self._learner.ranks = join(meeting, rank, host, *options)

    def accumulate(self, task: GroupTask, experience: Experience, scores: Scores) -> GroupReport | None:
        """None, and nothing done, when the group before was lost on its way here: calls wait behind each other."""
        if task.group % self._groups_per_update != self._learner.accumulated:
            return None
        return self._learner.accumulate(task, experience, scores)

    def step(self) -> UpdateReport:
        return self._learner.step()

    def publish(self, version: int) -> tuple[Weights, int]:
        """The weights, returned so that the driver owns them and nodes pull them once, and their checksum apart."""
        weights = self._learner.weights(version)
        return weights, weights.checksum

    def result(self, version: int) -> Weights:
        """What a run that ends here leaves."""
        return self._learner.result(version)

    def checksum(self) -> int:
        """Of this rank's parameters now."""
        return self._learner.checksum()

    def state(self, iteration: int) -> LearnerState:
        """Everything a new learner needs to go on from here."""
        return self._learner.state(iteration)
