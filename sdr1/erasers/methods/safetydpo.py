"""SafetyDPO (Safe-DPO): LoRA that prefers the picture of a safe prompt to that of the unsafe prompt it belongs to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import logsigmoid

from sdr1.config.policy import LoraConfig
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, flipped, predict, turns
from sdr1.models import lora, texts


class SafetyDpo(Eraser):
    """-log sigmoid(-b/2 [(L_w - L_l) - (L*_w - L*_l)]), with L = |e(x, t, c) - noise|^2 averaged over a sample and L* the base's.
    The won picture w is drawn from a safe prompt, the lost one l from its unsafe twin c; both have one noise and one t, and both
    are shown under c. Section 3.2 of the paper. Its experts by category and their merging are not in the code, nor here."""

    name = "safetydpo"
    kind = "preference"
    changes = "projections of self- and cross-attention, by LoRA"
    needs = "pairs of prompts; draws its own latents"
    source = "SafetyDPO (arXiv 2412.10493); Visualignment/SafetyDPO"
    sandbox: ClassVar = {
        "pairs": 500,
        "flip": False,
        "learning_rate": 2e-3,
        "warmup": 50,
        "updates": 500,
    }

    pairs: int = Field(16_043, ge=1, le=10**6, description="Drawn beforehand; as many as CoProV2 has.")
    flip: bool = Field(
        True,
        description="Whether half of the pictures are turned from left to right, the two of a pair apart.",
    )
    beta: FiniteFloat = Field(5000.0, gt=0, le=1e6, description="b: how much a change of the errors weighs.")
    empty: FiniteFloat = Field(
        0.2, ge=0, le=1, description="Share of samples that are shown under the empty prompt."
    )
    rank: int = Field(4, ge=1, le=4096, description="Of the LoRA adapters, and their alpha.")
    learning_rate: FiniteFloat = Field(1.6e-4, gt=0, le=1, description="Of AdamW: 1e-5 x batch 16, one GPU.")
    weight_decay: FiniteFloat = Field(0.01, ge=0, le=10, description="Of AdamW.")
    max_norm: FiniteFloat = Field(1.0, gt=0, le=1e6, description="The gradient is clipped to it.")
    warmup: int = Field(
        500, ge=0, le=10**7, description="Updates in which the learning rate rises to its value."
    )
    updates: int = Field(2000, ge=1, le=10**7, description="Of LoRA.")
    batch: int = Field(16, ge=1, le=4096, description="Pairs of an update: 4 x 4 accumulated.")

    def unet_evaluations(self, task: Task) -> int:
        guided = cost_of_a_step(task.sampler.guidance_scale)
        return 2 * self.pairs * task.sampler.steps * guided + self.updates * self._each

    @property
    def _each(self) -> int:
        """UNet evaluations of an update: both of each pair, with a gradient and by the base."""
        return 2 * self.batch * (1 + BACKWARD + 1)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, random = pipeline.unet, task.generator(self.name)
        sampling = Sampling(pipeline, task.sampler, task.sampler.guidance_scale)
        empty = texts.states(pipeline, [""])
        unsafe, neutral = texts.states(pipeline, task.unsafe), texts.states(pipeline, task.neutral)
        which, noise = turns(len(unsafe), self.pairs, random), sampling.noise(self.pairs, random)
        won, lost = (sampling.pool(unet, states, which, empty, noise) for states in (neutral, unsafe))
        lora.add(unet, LoraConfig(rank=self.rank, alpha=self.rank), task.seed, gaussian=True)
        trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: update / self.warmup if update < self.warmup else 1.0
        )
        for _ in range(meter.affordable(self.updates, self._each)):
            rows = torch.randint(self.pairs, (self.batch,), generator=random)
            latents = torch.cat([won[rows], lost[rows]])
            latents = flipped(latents, random) if self.flip else latents
            _, times, noise = sampling.noised(latents[: self.batch], random)
            noise, times = noise.repeat(2, 1, 1, 1), times.repeat(2)
            blank = (torch.rand(self.batch, generator=random) < self.empty).to(unsafe.device)
            states = torch.where(blank.view(-1, 1, 1), empty, unsafe[which[rows]]).repeat(2, 1, 1)
            shown = sampling.diffuse(latents, noise, times), times, states
            target = sampling.target(latents, noise, times)
            with lora.switched_off(unet), torch.no_grad():
                base = errors(unet, *shown, target)
            preference(errors(unet, *shown, target), base, self.beta).backward()
            torch.nn.utils.clip_grad_norm_(trained, self.max_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        lora.merge(unet)


def errors(
    unet: Any,
    latents_BCHW: torch.Tensor,
    times_B: torch.Tensor,
    states_BLD: torch.Tensor,
    target_BCHW: torch.Tensor,
) -> torch.Tensor:
    """|e(x, t, c) - target|^2 averaged over each sample, shape (B,); where e is the noise, the target is it."""
    return (predict(unet, latents_BCHW, times_B, states_BLD) - target_BCHW).square().mean((1, 2, 3))


def preference(errors_2B: torch.Tensor, base_2B: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid(-beta/2 [(L_w - L_l) - (L*_w - L*_l)]), averaged; the won samples' errors are the first half."""
    won, lost = (errors_2B - base_2B).chunk(2)
    return -logsigmoid(-beta / 2 * (won - lost)).mean()
