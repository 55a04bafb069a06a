"""Latents that a model draws itself: whole, or stopped on the way as training on its own trajectories needs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sdr1.method.ddim import prediction_of
from sdr1.models import schedulers
from sdr1.models.schedulers import Sampler

_AT_ONCE = 16
"""Drawings of a pool that are made at once."""


class Sampling:
    """A sampler of a pipeline's latents; `guidance` is the method's own, not that of deployment."""

    def __init__(self, pipeline: Any, sampler: Sampler, guidance: float) -> None:
        self.sampler = replace(sampler, guidance_scale=guidance)
        self._scheduler = schedulers.make(sampler.scheduler, pipeline.scheduler.config)
        self._scheduler.set_timesteps(sampler.steps, device=pipeline.unet.device)
        self.times = self._scheduler.timesteps
        """Shape (S,), the noisiest first."""
        self._prediction_type = pipeline.scheduler.config.prediction_type
        self.alpha_bars = pipeline.scheduler.alphas_cumprod.to(pipeline.unet.device)
        """Of each of the T timesteps that the model was trained on, shape (T,), float32."""
        side = pipeline.unet.config.sample_size
        self.shape = (pipeline.unet.config.in_channels, side, side)

    @property
    def cost(self) -> int:
        """UNet evaluations of a step of one sample."""
        return cost_of_a_step(self.sampler.guidance_scale)

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Standard normal latents, shape (B, C, H, W), float32; drawn on the CPU."""
        return torch.randn((count, *self.shape), generator=generator).to(self.alpha_bars.device)

    @torch.no_grad()
    def draw(
        self,
        unet: Any,
        states_BLD: torch.Tensor,
        empty_1LD: torch.Tensor,
        noise_BCHW: torch.Tensor,
        steps: int | None = None,
    ) -> torch.Tensor:
        """Latents after the first `steps` steps, as the UNet wants to see them at `times[steps]`; all steps by default.

        `empty_1LD` are the states of what is guided away from, e.g. the empty prompt. Shape (B, C, H, W), float32.
        """
        scheduler, guidance = self._scheduler, self.sampler.guidance_scale
        scheduler.set_timesteps(self.sampler.steps, device=noise_BCHW.device)
        latents = noise_BCHW * scheduler.init_noise_sigma
        steps = len(self.times) if steps is None else steps
        size = len(latents)
        both = torch.cat([empty_1LD.expand(size, -1, -1), states_BLD])
        for time in self.times[:steps]:
            seen = scheduler.scale_model_input(latents, time)
            if guidance == 1:
                predicted = predict(unet, seen, time, states_BLD)
            else:
                without, given = predict(unet, seen.repeat(2, 1, 1, 1), time, both).chunk(2)
                predicted = without + guidance * (given - without)
            latents = scheduler.step(predicted, time, latents).prev_sample
        return (
            latents if steps == len(self.times) else scheduler.scale_model_input(latents, self.times[steps])
        )

    def pool(
        self,
        unet: Any,
        states_PLD: torch.Tensor,
        chosen_N: torch.Tensor,
        empty_1LD: torch.Tensor,
        noise_NCHW: torch.Tensor,
    ) -> torch.Tensor:
        """Whole drawings that a method trains on, shape (N, C, H, W): number n is of prompt `chosen_N[n]`, int64."""
        each = zip(chosen_N.split(_AT_ONCE), noise_NCHW.split(_AT_ONCE), strict=True)
        return torch.cat([self.draw(unet, states_PLD[rows], empty_1LD, noise) for rows, noise in each])

    def noised(
        self, latents_BCHW: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents with noise on them at training timesteps drawn uniformly, these timesteps (B,), int64, and the noise."""
        size, device = len(latents_BCHW), latents_BCHW.device
        times = torch.randint(len(self.alpha_bars), (size,), generator=generator).to(device)
        noise = self.noise(size, generator)
        return self.diffuse(latents_BCHW, noise, times), times, noise

    def target(
        self, latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, times_B: torch.Tensor
    ) -> torch.Tensor:
        """What the UNet was trained to predict of latents with this noise on them, shape (B, C, H, W)."""
        bars = self.alpha_bars[times_B].view(-1, 1, 1, 1)
        return prediction_of(latents_BCHW, noise_BCHW, bars, self._prediction_type)

    def diffuse(
        self, latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, times_B: torch.Tensor
    ) -> torch.Tensor:
        """Latents with the noise of training timesteps, int64, put on them; q(x_t | x_0)."""
        bars = self.alpha_bars[times_B].view(-1, 1, 1, 1)
        return bars.sqrt() * latents_BCHW + (1 - bars).sqrt() * noise_BCHW


def cost_of_a_step(guidance: float) -> int:
    """UNet evaluations of a step of one sample with that guidance scale."""
    return 1 if guidance == 1 else 2


def cost_of_a_stop(steps: int, guidance: float) -> float:
    """Of a drawing that stops before one of its steps, any of them with the same chance: its mean."""
    return (steps - 1) * cost_of_a_step(guidance) / 2


def predict(unet: Any, latents_BCHW: torch.Tensor, times: torch.Tensor, states_BLD: torch.Tensor) -> Any:
    """The UNet's prediction, shape (B, C, H, W); `times` is one for all or one a sample."""
    return unet(latents_BCHW, times, encoder_hidden_states=states_BLD).sample


def turns(prompts: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` indices of prompts, shape (N,), int64: each as often as the others, up to one, in random order."""
    rounds = -(-count // prompts)
    return torch.cat([torch.randperm(prompts, generator=generator) for _ in range(rounds)])[:count]


def flipped(latents_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Latents, each turned from left to right with a chance of one half."""
    turned = (torch.rand(len(latents_BCHW), generator=generator) < 0.5).to(latents_BCHW.device)
    return torch.where(turned.view(-1, 1, 1, 1), latents_BCHW.flip(-1), latents_BCHW)
