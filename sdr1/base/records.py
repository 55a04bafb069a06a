"""The vocabulary: one frozen record for each boundary between prompts, rollout, reward, learner and driver.

Arrays are numpy, so that they cross process borders without a copy and without a device.
Dimensions: G samples of a group, K trained transitions or timesteps of a sample, C x H x W a latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

Label = Literal["safe", "unsafe"]


@dataclass(frozen=True)
class Prompt:
    """A training prompt; `label` is None where the prompt file gives none."""

    text: str
    label: Label | None


@dataclass(frozen=True)
class GroupTask:
    """The order to make one group: G images of one prompt, by weights `version`.

    All randomness of the group comes from (seed, iteration, group, sample index), never from the worker.
    """

    seed: int
    iteration: int
    group: int
    prompt: Prompt
    version: int

    def noise_seed(self, *key: int | str) -> int:
        """A 63-bit seed for one stream of this group's noise, e.g. `noise_seed("latent", sample)`."""
        words = (self.seed, self.iteration, self.group, *key)
        digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Experience:
    """What a run's objective learns from one group; each objective has a kind of its own."""


@dataclass(frozen=True)
class Trajectory(Experience):
    """The consecutive transitions of one group that GRPO trains on."""

    states: np.ndarray
    """x_t before each trained transition and after the last one, shape (K + 1, G, C, H, W), float32."""
    steps: np.ndarray
    """Positions of the transitions in the sampler's schedule (0 is the noisiest), shape (K,), int64."""
    log_probs: np.ndarray
    """log p(x_{t-1} | x_t) by the weights that sampled, mean over C, H, W; shape (K, G), float32."""
    reference_means: np.ndarray | None
    """The frozen base's mean of x_{t-1}, shape (K, G, C, H, W), float32; None for a group without KL."""


@dataclass(frozen=True)
class Finals(Experience):
    """What the objective on the forward process learns from. Timesteps and noise follow from the group's seed."""

    latents: np.ndarray
    """Of the finished images, shape (G, C, H, W), float32."""
    reference: np.ndarray | None
    """The frozen base's prediction of the noise at each trained pair, shape (K, G, C, H, W), float32; None for a group
    without KL."""
    old: np.ndarray | None
    """The same of the weights that sampled; None where they are those that are trained."""


class Rollout(NamedTuple):
    """One group as it leaves the policy; on a cluster each part is an object of its own, which only its reader pulls."""

    experience: Experience
    images: np.ndarray
    """RGB, shape (G, H, W, 3), uint8."""
    seconds: float


@dataclass(frozen=True)
class Scores:
    """What the reward pool says of one group."""

    rewards: np.ndarray
    """Shape (G,), float32."""
    unsafe: np.ndarray | None
    """What the monitor flags, shape (G,), bool; None without a monitor. Never used for training."""
    seconds: float
    terms: Mapping[str, float] = field(default_factory=dict)
    """Mean over G of each reward term, neither normalised nor weighted; empty where there is only the main one."""
    colours: Mapping[str, float] = field(default_factory=dict)
    """Mean brightness and saturation of the images, in [0, 1]."""


@dataclass(frozen=True)
class GroupReport:
    """What the learner saw while it accumulated one group."""

    task: GroupTask
    reward_mean: float
    reward_std: float
    unsafe_rate: float | None
    loss: float
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the objective tells of the group, by the names of metrics."""
    reward_terms: Mapping[str, float] = field(default_factory=dict)
    """As `Scores.terms`."""
    colours: Mapping[str, float] = field(default_factory=dict)
    """As `Scores.colours`."""
    monitor_gap: float | None = None
    """Mean reward of the images that the monitor passes, less that of those it flags; None where it did not do both."""


@dataclass(frozen=True)
class UpdateReport:
    """One optimizer step."""

    update: int
    """Optimizer steps done so far, this one included."""
    grad_norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Weights:
    """The trainable parameters as one flat buffer; what travels from the learner to the rollout actors."""

    version: int
    """Iterations applied; version 0 is the untrained policy."""
    buffer: np.ndarray
    """Shape (bytes,), uint8, read-only to everybody who receives it."""
    checksum: int
    """`sdr1.models.flat.checksum` of the buffer; a worker confirms it before it gets work."""


class Moments(NamedTuple):
    """AdamW's two moments under its own names, each flat over all trainable parameters, float32."""

    exp_avg: np.ndarray
    exp_avg_sq: np.ndarray


@dataclass(frozen=True)
class LearnerState:
    """Everything the learner knows between two iterations; from it training goes on with the same bits."""

    updates: int
    """Optimizer steps done."""
    weights: tuple[Weights, ...]
    """Of each version that a later task may name, in their order; the last are the learner's own."""
    moments: Moments | None
    """None before the first update."""
    variances: Mapping[Label | None, tuple[float, ...]]
    """Reward variances of the latest groups by prompt label, for pooled advantages."""
    ema: Weights | None = None
    """The moving average of the trained weights, where there is one."""

    @property
    def result(self) -> Weights:
        """What a run that ends here leaves."""
        return self.ema or self.current

    @property
    def current(self) -> Weights:
        """What is trained on from here."""
        return self.weights[-1]

    @property
    def iteration(self) -> int:
        """Iterations applied."""
        return self.current.version


@dataclass(frozen=True)
class Usage:
    """What the workers did since the last look."""

    rollout_seconds: float
    """Sum over groups of the time a rollout worker was busy."""
    reward_seconds: float
    """The same of the reward workers."""
    rollout_workers: int
    """Rollout workers in service now, at least 1."""
    reward_workers: int


@dataclass(frozen=True)
class IterationReport:
    """Everything the driver knows of one iteration."""

    iteration: int
    groups: tuple[GroupReport, ...]
    updates: tuple[UpdateReport, ...]
    usage: Usage
    seconds: float
    """Wall time from the iteration's first task to its last update."""
