"""What an objective is: it draws a group with all that learning from it needs, and turns its scores into a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

import numpy as np
import torch

from sdr1.base.records import Experience, GroupTask, Rollout
from sdr1.config.training import Config
from sdr1.models.policy import Policy

RATIO_GAP = "ratio_gap/"
"""What figures begin with that are |rho - 1|. Before the first update they have to be zero, which the learner checks, and
an iteration tells the largest of them; of other figures it tells the mean."""

E = TypeVar("E", bound=Experience, contravariant=True)
"""The kind of experience that an objective's rollouts ship and its loss takes."""

OF_THE_BASE = ("kl", "prediction_norm")
"""Figures of groups whose experience holds the base's predictions: the KL to it, and how long ours are beside its own."""


def relative_norm(ours_BCHW: torch.Tensor, its_BCHW: torch.Tensor) -> torch.Tensor:
    """|ours| / |its|, shape (B,): 1 for the base itself; predictions that grow are the first sign of a policy that breaks."""
    return ours_BCHW.flatten(1).norm(dim=1) / its_BCHW.flatten(1).norm(dim=1)


class Objective(Protocol[E]):
    """Made by each rollout worker and by the learner alike, of the run's config and a policy of their own.

    Whatever it draws at random comes from `GroupTask.noise_seed`, so that every process draws the same.
    """

    tolerance: float
    """Largest |rho - 1| before the first update that rounding explains."""

    def __init__(self, config: Config, policy: Policy) -> None: ...

    def rollout(self, task: GroupTask) -> Rollout:
        """Draw a group; its `experience` is what the other methods are given of it.

        What frozen weights predict belongs here: there are many rollout workers, and one learner.

        Raises:
            TrainingError: pictures are not finite.
        """

    def size(self, experience: E) -> int:
        """How many parts a group's loss has: pairs of a sample and a timestep. They are independent of one another."""

    def loss(
        self, task: GroupTask, experience: E, advantages_G: torch.Tensor, parts: np.ndarray
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of some of a group's parts: the loss, whose mean over all parts is descended, and detached values to report,
        each of shape (B,) in float32, by names that are the same for all parts of a group."""

    def figures(self, experience: E, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Figures of a group, of the values to report, each of shape (parts,)."""

    @staticmethod
    def names(config: Config) -> set[str]:
        """Every name that `figures` may give in a run of this config."""
