"""Gradients of scored groups are accumulated group by group, then one optimizer step is made."""

from __future__ import annotations

import math
import time
from collections import deque

import numpy as np
import torch

from sdr1.base.errors import TrainingError
from sdr1.base.records import (
    Experience,
    GroupReport,
    GroupTask,
    Label,
    LearnerState,
    Moments,
    Scores,
    UpdateReport,
    Weights,
)
from sdr1.config.training import Config
from sdr1.method.objective import group_advantages
from sdr1.models.flat import FlatParameters
from sdr1.models.policy import Policy
from sdr1.planning.counts import passes
from sdr1.training import objectives
from sdr1.training.objectives.objective import RATIO_GAP
from sdr1.training.ranks import ALONE, Ranks


class Learner:
    """Owns the trained weights and the optimizer.

    Groups are accumulated in the order of their index, so that float addition gives the same bits in every run.
    With several ranks each takes every n-th micro-batch of a group; the gradient is summed before the update, so that
    all of them make the same one.
    """

    def __init__(self, config: Config, policy: Policy | None = None, ranks: Ranks = ALONE) -> None:
        self._config, self.ranks = config, ranks
        self._policy = policy or Policy(config.policy, device=config.learner.device, seed=config.seed)
        self._objective = objectives.kind(config)(config, self._policy)
        options = config.learner
        self._optimizer = torch.optim.AdamW(
            self._policy.parameters,
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
        )
        self._ema = self._policy.flat.copy() if options.ema_decay else None
        self._updates_per_iteration = config.prompts.per_iteration // config.groups_per_update
        self._updates = 0
        self.accumulated = 0
        """Groups since the last optimizer step."""
        self._scale = 1.0
        self._variances: dict[Label | None, deque[float]] = {}
        self._published: dict[int, Weights] = {}
        """Snapshots that a later task may name; none without `max_staleness`."""

    def weights(self, version: int) -> Weights:
        """The trainable parameters under a version number, valid until the next update.

        With `max_staleness` a snapshot of now, or one that was taken lately; those stay valid.
        """
        if self._config.rollout.max_staleness == 0:
            return self._drawing.publish(version)
        if version not in self._published:
            self._published[version] = self._policy.flat.snapshot(version)
            for old in [v for v in self._published if v < version - self._config.rollout.max_staleness]:
                del self._published[old]
        return self._published[version]

    def checksum(self) -> int:
        """Of what `weights` publishes now: equal on every rank, or the ranks have drifted apart."""
        return self._drawing.checksum()

    def result(self, version: int) -> Weights:
        """What a run that ends here leaves, valid until the next update: the trained parameters, or their average."""
        return (self._ema or self._policy.flat).publish(version)

    @property
    def _drawing(self) -> FlatParameters:
        draws = self._config.rollout.weights == "ema"
        return self._ema if draws and self._ema is not None else self._policy.flat

    def state(self, iteration: int) -> LearnerState:
        """A copy of all that training depends on, between two iterations; `weights(iteration)` was called."""
        published = self._published or {iteration: self._policy.flat.snapshot(iteration)}
        weights = tuple(published[version] for version in sorted(published))
        variances = {label: tuple(values) for label, values in self._variances.items()}
        ema = self._ema.snapshot(iteration) if self._ema is not None else None
        return LearnerState(self._updates, weights, self._moments(), variances, ema)

    def _moments(self) -> Moments | None:
        if not self._updates:
            return None
        states = [self._optimizer.state[parameter] for parameter in self._policy.parameters]
        return Moments(
            *(torch.cat([each[name].flatten() for each in states]).cpu().numpy() for name in Moments._fields)
        )

    def restore(self, state: LearnerState) -> None:
        """Become the learner that `state` was taken from.

        Raises:
            UserError: the state belongs to other parameters.
        """
        self._policy.flat.load(state.current.buffer)
        if self._ema is not None:
            self._ema.load(state.result.buffer)
        if self._config.rollout.max_staleness:
            self._published = {weights.version: weights for weights in state.weights}
        self._updates, self.accumulated = state.updates, 0
        self._optimizer.zero_grad()
        self._optimizer.state.clear()
        if state.moments is not None:
            self._restore_optimizer(state.updates, state.moments)
        latest = self._config.prompts.per_iteration
        self._variances = {label: deque(values, maxlen=latest) for label, values in state.variances.items()}

    def _restore_optimizer(self, updates: int, moments: Moments) -> None:
        flats = {name: torch.tensor(moment) for name, moment in moments._asdict().items()}
        offset = 0
        for parameter in self._policy.parameters:
            size = parameter.numel()
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(updates)),
                **{
                    name: flat[offset : offset + size].view(parameter.shape).to(parameter.device, copy=True)
                    for name, flat in flats.items()
                },
            }
            offset += size

    def accumulate(self, task: GroupTask, experience: Experience, scores: Scores) -> GroupReport:
        """Add one group's gradient of the mean loss over the whole minibatch.

        Raises:
            TrainingError: a reward or the loss is not finite, or rho is not 1 before the first update.
            LearnerLost: another rank is gone.
        """
        begin = time.perf_counter()
        if not np.isfinite(scores.rewards).all():
            raise TrainingError(
                f"{_name(task)}: rewards are not finite: {scores.rewards.tolist()}; nothing was updated"
            )
        advantages_G = self._advantages(task, torch.from_numpy(scores.rewards.copy()))
        losses, seen = self._backward(task, experience, advantages_G)
        # Every rank has filled its own places; the sum holds all of them, exactly.
        self.ranks.add([losses, *seen.values()])
        mean_loss = losses.mean().item()
        if not math.isfinite(mean_loss):
            self._optimizer.zero_grad()
            raise TrainingError(f"{_name(task)}: the loss is {mean_loss}; stopped before the optimizer")
        figures = self._objective.figures(experience, seen)
        self._check_ratio(task, figures)
        self.accumulated += 1
        return GroupReport(
            task=task,
            reward_mean=float(scores.rewards.mean(dtype=np.float64)),
            reward_std=float(scores.rewards.std(ddof=1, dtype=np.float64)),
            unsafe_rate=None if scores.unsafe is None else float(scores.unsafe.mean()),
            loss=mean_loss,
            seconds=time.perf_counter() - begin,
            figures=figures,
            reward_terms=scores.terms,
            colours=scores.colours,
            monitor_gap=_monitor_gap(scores),
        )

    def _backward(
        self, task: GroupTask, experience: Experience, advantages_G: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Add this rank's share of a group's gradient.

        The losses and the values to report, each of shape (parts,), zero where another rank computes them. Parts are
        flattened into micro-batches: they are independent.
        """
        parts = self._objective.size(experience)
        scale = self._loss_scale(parts * self._config.groups_per_update)
        losses = torch.zeros(parts, device=self._policy.device)
        seen: dict[str, torch.Tensor] = {}
        for chunk in micro_batches(parts, self._config.learner.micro_batch, self.ranks):
            loss, values = self._objective.loss(task, experience, advantages_G, chunk)
            (loss.sum() / (parts * self._config.groups_per_update) * scale).backward()
            losses[chunk] = loss.detach()
            for name, value in values.items():
                seen.setdefault(name, torch.zeros_like(losses))[chunk] = value
        return losses, seen

    def step(self) -> UpdateReport:
        """Clip the gradient and make one optimizer step.

        Raises:
            TrainingError: the gradient is not finite; weights and optimizer stay as they were.
            LearnerLost: another rank is gone.
        """
        begin = time.perf_counter()
        assert self.accumulated == self._config.groups_per_update, (
            "an update needs a full minibatch of groups"
        )
        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self.ranks.add([parameter.grad for parameter in self._policy.parameters])
        if self._scale != 1:
            for parameter in self._policy.parameters:
                if parameter.grad is not None:
                    parameter.grad /= self._scale
        norm = torch.nn.utils.clip_grad_norm_(
            self._policy.parameters, self._config.learner.max_grad_norm
        ).item()
        if not math.isfinite(norm):
            raise TrainingError(
                f"update {self._updates}: the gradient norm is {norm}; stopped before the optimizer"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._updates += 1
        self.accumulated = 0
        if self._ema is not None:
            decay = min(self._config.learner.ema_decay, (1 + self._updates) / (10 + self._updates))
            self._ema.tensor.lerp_(self._policy.flat.tensor, 1 - decay)
        return UpdateReport(self._updates, norm, rate, time.perf_counter() - begin)

    def _loss_scale(self, parts: int) -> float:
        """A power of two that keeps gradients inside float16: the UNet's output then gets ones of order 1/64."""
        if self._config.policy.precision == "float16":
            dimensions = math.prod(self._policy.latent_shape)
            self._scale = 2.0 ** (round(math.log2(parts * dimensions)) - 6)
        return self._scale

    def _advantages(self, task: GroupTask, rewards_G: torch.Tensor) -> torch.Tensor:
        options = self._config.learner
        if options.advantage_scale == "group":
            return group_advantages(rewards_G, options.advantage_clip)
        # Pooling over past groups only, and this one, keeps a group trainable as soon as it is scored.
        variances = self._variances.setdefault(
            task.prompt.label, deque(maxlen=self._config.prompts.per_iteration)
        )
        variances.append(rewards_G.double().var().item())
        return group_advantages(
            rewards_G, options.advantage_clip, std=math.sqrt(sum(variances) / len(variances))
        )

    def _learning_rate(self) -> float:
        options = self._config.learner
        done = self._updates / (self._config.iterations * self._updates_per_iteration)
        fallen = max(0.0, done - options.decay_start) / (1 - options.decay_start or 1)
        return options.learning_rate * 0.1**fallen

    def _check_ratio(self, task: GroupTask, figures: dict[str, float]) -> None:
        gap = max((value for name, value in figures.items() if name.startswith(RATIO_GAP)), default=0.0)
        tolerance = self._objective.tolerance
        # Of an average that draws rho says how far it lags.
        on_policy = (
            self._drawing is self._policy.flat and task.version * self._updates_per_iteration == self._updates
        )
        if on_policy and gap > tolerance:
            raise TrainingError(
                f"{_name(task)}: before the first update the likelihood ratio is {gap:.1e} away from 1 (allowed "
                f"{tolerance:.0e}): learner and rollout compute different log-probs; check that both use the same "
                "weights, device and precision"
            )


def micro_batches(parts: int, most: int, ranks: Ranks = ALONE) -> list[np.ndarray]:
    """This rank's share of 0..parts-1, in passes of near-equal size of at most `most`."""
    count = passes(parts, most, ranks.size) * ranks.size
    chunks = np.array_split(np.arange(parts), count)[ranks.rank :: ranks.size]
    return [chunk for chunk in chunks if len(chunk)]


def _monitor_gap(scores: Scores) -> float | None:
    if scores.unsafe is None or scores.unsafe.all() or not scores.unsafe.any():
        return None
    passed, flagged = scores.rewards[~scores.unsafe], scores.rewards[scores.unsafe]
    return float(passed.mean(dtype=np.float64) - flagged.mean(dtype=np.float64))


def _name(task: GroupTask) -> str:
    return f"iteration {task.iteration}, group {task.group} ({task.prompt.text!r})"
