"""GRPO on the reverse chain (SafeDiffusion-R1, "GRPO update"): the clipped ratio of each noisy step, and a KL to the base."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from sdr1.base.records import GroupTask, Rollout, Trajectory
from sdr1.config.training import Config
from sdr1.method import ddim
from sdr1.method.objective import clipped_loss, gaussian_kl
from sdr1.models.policy import Policy
from sdr1.training.objectives.objective import OF_THE_BASE, RATIO_GAP, relative_norm


class Grpo:
    """A group's parts are its transitions, step by step and sample by sample."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self._config, self._policy = config, policy
        # The clip range is ten times wider. With autocast batches of other shapes may round otherwise.
        self.tolerance = 1e-5 if config.policy.precision == "float32" else 1e-3

    def rollout(self, task: GroupTask) -> Rollout:
        begin = time.perf_counter()
        latents, trajectory = self._policy.chain(
            task, self._config.rollout.group_size, with_reference=self._config.has_kl(task.prompt.label)
        )
        return Rollout(trajectory, self._policy.decode(latents, task), time.perf_counter() - begin)

    def size(self, experience: Trajectory) -> int:
        return experience.log_probs.size

    def loss(
        self, task: GroupTask, experience: Trajectory, advantages_G: torch.Tensor, parts: np.ndarray
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        options, device = self._config.learner, self._policy.device
        samples = experience.log_probs.shape[1]
        shared = self._config.policy.initial_noise != "sample"
        k, g = parts // samples, parts % samples
        # Samples that share their initial noise still are one state at the first trained step: evaluated once.
        states, places = np.unique(np.where((k == 0) & shared, 0, parts), return_inverse=True)
        state_k, state_g = states // samples, states % samples
        latents = torch.from_numpy(experience.states[state_k, state_g]).to(device)
        following = torch.from_numpy(experience.states[k + 1, g]).to(device)
        old_log_probs = torch.from_numpy(experience.log_probs[k, g]).to(device)
        steps = torch.from_numpy(experience.steps[state_k]).to(device)
        evaluated = self._policy.transition(latents, steps, task.prompt.text)
        place = torch.from_numpy(places).to(device)
        mean, sigma = (each.index_select(0, place) for each in evaluated)
        log_probs = ddim.log_prob(following, mean, sigma)
        loss, _ = clipped_loss(log_probs, old_log_probs, advantages_G[g].to(device), options.clip_range)
        seen = {"log_ratio": log_probs.detach() - old_log_probs}
        if experience.reference_means is not None:
            base = torch.from_numpy(experience.reference_means[k, g]).to(device)
            kl = gaussian_kl(mean, base, sigma)
            loss = loss + options.kl_weight * kl
            at = latents.index_select(0, place), steps.index_select(0, place)
            ours, its = (self._policy.noise_part(each, *at) for each in (mean.detach(), base))
            seen |= {"kl": kl.detach(), "prediction_norm": relative_norm(ours, its)}
        return loss, seen

    def figures(self, experience: Trajectory, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        off_one_KG = (seen["log_ratio"].exp().reshape(experience.log_probs.shape) - 1).abs()
        found = {"clip_fraction": (off_one_KG > self._config.learner.clip_range).float().mean().item()}
        for step, gap in zip(experience.steps, off_one_KG.amax(dim=1).tolist(), strict=True):
            found[f"{RATIO_GAP}step_{step}"] = gap
        return found | {name: seen[name].mean().item() for name in OF_THE_BASE if name in seen}

    @staticmethod
    def names(config: Config) -> set[str]:
        found = {"clip_fraction"} | {f"{RATIO_GAP}step_{step}" for step in config.policy.window}
        return found | (set(OF_THE_BASE) if config.learner.kl_weight > 0 else set())
