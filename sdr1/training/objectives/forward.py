"""The objective on the forward process: final latents are noised again, and their denoising error moved by the advantage.

Advantage-weighted matching (arXiv 2509.25050) and DiffusionNFT (arXiv 2509.16117), in epsilon; `sdr1.method.forward` has
the formulas. What is trained is the prediction without guidance, whatever guidance draws the rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch

from sdr1.base.records import Finals, GroupTask, Rollout
from sdr1.config.training import Config
from sdr1.method import forward
from sdr1.method.objective import clipped_loss
from sdr1.models.policy import Policy, normal
from sdr1.training.objectives.objective import OF_THE_BASE, RATIO_GAP, relative_norm


class Forward:
    """A group's parts are its pairs of a timestep and a sample, timestep by timestep."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self._config, self._options, self._policy = config, config.learner.forward, policy
        # The noisiest steps weigh a hundredfold, and rounding with them.
        self.tolerance = 1e-3 if config.policy.precision == "float32" else 1e-1

    def rollout(self, task: GroupTask) -> Rollout:
        begin = time.perf_counter()
        latents = self._policy.draw(task, self._config.rollout.group_size)
        has_kl, off_policy = self._config.has_kl(task.prompt.label), self._config.off_policy
        finals = Finals(
            latents=latents.cpu().numpy(),
            reference=self._predicted(task, latents, reference=True) if has_kl else None,
            old=self._predicted(task, latents, reference=False) if off_policy else None,
        )
        return Rollout(finals, self._policy.decode(latents, task), time.perf_counter() - begin)

    @torch.no_grad()
    def _predicted(self, task: GroupTask, latents_GCHW: torch.Tensor, *, reference: bool) -> np.ndarray:
        """Predictions of the noise at all of a group's parts, shape (K, G, C, H, W)."""
        samples = len(latents_GCHW)
        made = []
        for k in range(self._options.timesteps):
            noised, _, times = self._noised(task, latents_GCHW, np.full(samples, k), np.arange(samples))
            made.append(self._policy.epsilon(noised, times, task.prompt.text, reference=reference))
        return torch.stack(made).cpu().numpy()

    def _noised(
        self, task: GroupTask, latents_BCHW: torch.Tensor, k: np.ndarray, g: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents of samples g at their k-th timesteps, the noise in them, and the timesteps, shape (B,)."""
        low, high = (round(share * len(self._policy.alpha_bars)) for share in self._options.between)
        generator = torch.Generator().manual_seed(task.noise_seed("timesteps"))
        times_K = forward.stratified_timesteps(self._options.timesteps, low, high, generator)
        drawn = cache(lambda *key: normal(task, self._policy.latent_shape, "noise", *key))
        keys = zip(k, g, strict=True) if self._options.noise == "sample" else zip(k)
        noise = torch.stack([drawn(*key) for key in keys]).to(latents_BCHW.device)
        times = times_K[k].to(latents_BCHW.device)
        return forward.noised(latents_BCHW, noise, self._policy.alpha_bars[times]), noise, times

    def size(self, experience: Finals) -> int:
        return self._options.timesteps * len(experience.latents)

    def loss(
        self, task: GroupTask, experience: Finals, advantages_G: torch.Tensor, parts: np.ndarray
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        options, device = self._options, self._policy.device
        samples = len(experience.latents)
        k, g = parts // samples, parts % samples
        latents = torch.from_numpy(experience.latents[g]).to(device)
        noised, noise, times = self._noised(task, latents, k, g)
        prediction = self._policy.epsilon(noised, times, task.prompt.text)
        old = prediction.detach()
        if experience.old is not None:
            old = torch.from_numpy(experience.old[k, g]).to(device)
        weight = forward.timestep_weight(self._policy.alpha_bars[times], options.weight, options.snr_cap)
        error, old_error = (forward.denoising_error(each, noise) for each in (prediction, old))
        advantages = advantages_G[g].to(device)
        if options.form == "clipped":
            loss, _ = clipped_loss(-weight * error, -weight * old_error, advantages, options.clip_range)
        else:
            bound = self._config.learner.advantage_clip
            loss = forward.bounded_loss(prediction, old, noise, advantages, weight, bound, options.strength)
        seen = {"error": error.detach()}
        if experience.old is not None:
            loss = loss + options.old_weight * weight * forward.denoising_error(prediction, old)
            seen["log_ratio"] = weight * (old_error - seen["error"])
        if experience.reference is not None:
            base = torch.from_numpy(experience.reference[k, g]).to(device)
            kl = weight * forward.denoising_error(prediction, base)
            loss = loss + self._config.learner.kl_weight * kl
            seen |= {"kl": kl.detach(), "prediction_norm": relative_norm(prediction.detach(), base)}
        return loss, seen

    def figures(self, experience: Finals, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
        found = {"denoising_error": seen["error"].mean().item()}
        if "log_ratio" in seen:
            off_one_KG = (seen["log_ratio"].exp().view(-1, len(experience.latents)) - 1).abs()
            found |= {f"{RATIO_GAP}part_{k}": gap for k, gap in enumerate(off_one_KG.amax(dim=1).tolist())}
            if self._options.form == "clipped":
                found["clip_fraction"] = (off_one_KG > self._options.clip_range).float().mean().item()
        return found | {name: seen[name].mean().item() for name in OF_THE_BASE if name in seen}

    @staticmethod
    def names(config: Config) -> set[str]:
        found = {"denoising_error"} | (set(OF_THE_BASE) if config.learner.kl_weight > 0 else set())
        if config.off_policy:
            options = config.learner.forward
            found |= {f"{RATIO_GAP}part_{k}" for k in range(options.timesteps)}
            found |= {"clip_fraction"} if options.form == "clipped" else set()
        return found
