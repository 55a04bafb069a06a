"""The calls of each role as the driver makes them: references go in and come out, so that data passes it by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
from sdr1.distributed.actor import Handle, Ref
from sdr1.training.ranks import Meeting


class Made(NamedTuple):
    """The parts of a `Rollout`, each an object of its own: nobody pulls what it does not read."""

    experience: Ref[Experience]
    """For the learner."""
    images: Ref[np.ndarray]
    """For the reward worker, and for pictures to look at."""
    seconds: Ref[float]
    """For the driver."""


class RolloutHandle(Handle):
    def load(self, weights: Ref[Weights]) -> Ref[int]:
        return self._actor.load.remote(weights)

    def rollout(self, task: GroupTask) -> Made:
        return Made(*self._actor.rollout.options(num_returns=len(Rollout._fields)).remote(task))


class RewardHandle(Handle):
    def score(self, images: Ref[np.ndarray], prompt: Prompt) -> Ref[Scores]:
        return self._actor.score.remote(images, prompt)


class LearnerHandle(Handle):
    def meet(self, nodes: Sequence[Ref[str]]) -> Ref[Meeting]:
        return self._actor.meet.remote(*nodes)

    def join(self, meeting: Ref[Meeting], rank: int) -> Ref[None]:
        return self._actor.join.remote(meeting, rank)

    def accumulate(
        self, task: GroupTask, experience: Ref[Experience], scores: Ref[Scores]
    ) -> Ref[GroupReport | None]:
        return self._actor.accumulate.remote(task, experience, scores)

    def step(self) -> Ref[UpdateReport]:
        return self._actor.step.remote()

    def publish(self, version: int) -> tuple[Ref[Weights], Ref[int]]:
        return self._actor.publish.options(num_returns=2).remote(version)

    def result(self, version: int) -> Ref[Weights]:
        return self._actor.result.remote(version)

    def checksum(self) -> Ref[int]:
        return self._actor.checksum.remote()

    def state(self, iteration: int) -> Ref[LearnerState]:
        return self._actor.state.remote(iteration)
