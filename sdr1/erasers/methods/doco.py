"""DoCo: keys and values of cross-attention trained against a discriminator that tells the concept's pictures from an anchor's."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from sdr1.base.errors import UserError
from sdr1.erasers import layers
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, flipped, predict, turns
from sdr1.method.ddim import split_prediction
from sdr1.models import texts
from sdr1.models.schedulers import Sampler

Gradients = tuple[torch.Tensor, ...]


class DoCo(Eraser):
    """A discriminator D tells x_0 predicted by the model under the concept's prompt (label 1) from x_0 predicted by the base
    under the anchor's (label 0), both from one noisy picture of the anchor; the model is trained to get 0. Of its gradient the
    part is removed that is against the prior's, of |e(x_a, t, c_a) - noise|^2, matrix by matrix. Sections 3.2 and 3.3 of the
    paper."""

    name = "doco"
    kind = "fine-tuning"
    changes = "keys and values of cross-attention"
    needs = "pairs of prompts; draws its own latents"
    source = "Domain Correction (arXiv 2405.15304); yongliang-wu/DoCo"
    sandbox: ClassVar = {
        "images": 512,
        "scheduler": "DDIMScheduler",
        "steps": 8,
        "guidance": 1.5,
        "flip": False,
        "widths": (32, 64),
        "normalisation": "group",
        "discriminator_rate": 1e-3,
        "removal": 1.0,
        "prior_weight": 0.1,
        "learning_rate": 1e-3,
        "alone": 200,
        "updates": 400,
        "batch": 32,
    }

    parameters: layers.Rule = Field("kv", description="Trained ones.")
    images: int = Field(
        1000, ge=1, le=10**6, description="Pictures of the neutral twins, the anchors, drawn beforehand."
    )
    scheduler: str = Field("DPMSolverMultistepScheduler", description="Of these drawings.")
    steps: int = Field(25, ge=1, le=1000, description="Of these drawings.")
    guidance: FiniteFloat = Field(6.0, ge=1, le=100, description="Of these drawings.")
    flip: bool = Field(
        True, description="Whether half of them are turned from left to right, as augmentation."
    )
    widths: tuple[int, ...] = Field(
        (64, 128, 256, 512),
        min_length=1,
        description="Channels of D's convolutions; each halves a picture's side.",
    )
    normalisation: Literal["batch", "group"] = Field("batch", description="Between D's convolutions.")
    discriminator_rate: FiniteFloat = Field(1e-4, gt=0, le=1, description="Learning rate of D's Adam.")
    surgery: Literal["projection", "released"] = Field(
        "projection",
        description="What is subtracted where both gradients are against each other: the projection g'p/|p|^2 p of the paper, or "
        "g'p/(|g| |p|^2) p, which the code has and which is far more.",
    )
    removal: FiniteFloat = Field(
        0.5, ge=0, le=1, description="Share of it; the code's lambda_ in scripts/nudity.sh."
    )
    prior_weight: FiniteFloat = Field(
        0.0, ge=0, le=1e6, description="Of the prior's own gradient, which the code does not add."
    )
    learning_rate: FiniteFloat = Field(4.8e-5, gt=0, le=1, description="Of AdamW: 6e-6 x batch 8.")
    weight_decay: FiniteFloat = Field(0.01, ge=0, le=10, description="Of AdamW.")
    max_norm: FiniteFloat = Field(1.0, gt=0, le=1e6, description="Each gradient is clipped to it.")
    alone: int = Field(1000, ge=0, le=10**7, description="Steps of D alone, before.")
    updates: int = Field(1000, ge=1, le=10**7, description="Steps of both.")
    batch: int = Field(8, ge=1, le=4096, description="Latents of each term.")

    def unet_evaluations(self, task: Task) -> int:
        drawing = self.images * self.steps * cost_of_a_step(self.guidance)
        return drawing + self.alone * self._cost(False) + self.updates * self._cost(True)

    def _cost(self, both: bool) -> int:
        """UNet evaluations of a step: the two predictions that D sees, and the prior's."""
        return self.batch * (2 + both * (BACKWARD + 1 + BACKWARD))

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, base, random = pipeline.unet, copy.deepcopy(pipeline.unet), task.generator(self.name)
        prediction_type = pipeline.scheduler.config.prediction_type
        sampling = Sampling(pipeline, Sampler(self.scheduler, self.steps, self.guidance), self.guidance)
        discriminator = self.discriminator(*sampling.shape[:2]).to(unet.device)
        empty, unsafe, neutral = (texts.states(pipeline, each) for each in ([""], task.unsafe, task.neutral))
        which, noise = turns(len(unsafe), self.images, random), sampling.noise(self.images, random)
        pool = sampling.pool(unet, neutral, which, empty, noise)

        def batch() -> tuple[torch.Tensor, ...]:
            """Noisy pictures, their timesteps, what is predicted of them, and which prompt each is of."""
            rows = torch.randint(self.images, (self.batch,), generator=random)
            latents = flipped(pool[rows], random) if self.flip else pool[rows]
            noisy, times, noise = sampling.noised(latents, random)
            return noisy, times, sampling.target(latents, noise, times), which[rows]

        def x0(by: Any, states: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            bars = sampling.alpha_bars[times].view(-1, 1, 1, 1)
            return split_prediction(predict(by, noisy, times, states), noisy, bars, prediction_type)[0]

        trained = list(layers.select(unet, self.parameters).values())
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        judging = torch.optim.Adam(discriminator.parameters(), lr=self.discriminator_rate, betas=(0.5, 0.999))
        for step in range(self.alone + self.updates):
            both = step >= self.alone
            if not meter.affords(self._cost(both)):
                break
            noisy, times, _, prompts = batch()
            with torch.set_grad_enabled(both):
                fake = x0(unet, unsafe[prompts], noisy, times)
            real = x0(base, neutral[prompts], noisy, times)
            telling(discriminator, fake.detach(), real).backward()
            judging.step()
            if both:
                adverse = torch.autograd.grad(fooling(discriminator, fake), trained)
                noisy, times, target, prompts = batch()
                error = mse_loss(predict(unet, noisy, times, neutral[prompts]), target)
                prior = torch.autograd.grad(error, trained)
                found = self.combined(clipped(adverse, self.max_norm), clipped(prior, self.max_norm))
                for parameter, gradient in zip(trained, found, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            judging.zero_grad()

    def discriminator(self, channels: int, side: int) -> torch.nn.Sequential:
        """D of latents: a number for each patch. The first convolution has no normalisation.

        Raises:
            UserError: the latents are too small for so many convolutions.
        """
        if side >> len(self.widths) < 2:
            raise UserError(
                f"widths: {list(self.widths)}: each halves the latents' side of {side}, which ends below 2; name fewer"
            )
        parts: list[torch.nn.Module] = []
        for width in self.widths:
            parts.append(torch.nn.Conv2d(channels, width, 4, stride=2, padding=1))
            if len(parts) > 1 and self.normalisation == "batch":
                parts.append(torch.nn.BatchNorm2d(width))
            elif len(parts) > 1:
                parts.append(torch.nn.GroupNorm(math.gcd(8, width), width))
            parts.append(torch.nn.LeakyReLU(0.2))
            channels = width
        return torch.nn.Sequential(*parts, torch.nn.Conv2d(channels, 1, 4, padding=1))

    def combined(self, adverse: Gradients, prior: Gradients) -> Gradients:
        """The model's gradient, matrix by matrix: the adverse one without what is against the prior's, and the prior's share."""
        found = []
        for wanted, kept in zip(adverse, prior, strict=True):
            conflict, size = (wanted * kept).sum(), kept.square().sum()
            if self.surgery == "released":
                size = size * wanted.norm()
            removed = conflict.clamp(max=0) / size.clamp(min=1e-30) * kept
            found.append(wanted - self.removal * removed + self.prior_weight * kept)
        return tuple(found)


def telling(discriminator: Any, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """D's loss: 1 for what the model predicts under the concept's prompt, 0 for what the base does under the anchor's."""
    untrue, true = discriminator(fake), discriminator(real)
    loss: torch.Tensor = binary_cross_entropy_with_logits(untrue, torch.ones_like(untrue))
    return loss + binary_cross_entropy_with_logits(true, torch.zeros_like(true))


def fooling(discriminator: Any, fake: torch.Tensor) -> torch.Tensor:
    """The model's loss: D shall say 0."""
    found = discriminator(fake)
    return binary_cross_entropy_with_logits(found, torch.zeros_like(found))


def clipped(gradients: Gradients, most: float) -> Gradients:
    """All of them by one factor, so that their norm is `most` or less."""
    norm = torch.nn.utils.get_total_norm(gradients)
    factor = (most / (norm + 1e-6)).clamp(max=1)
    return tuple(gradient * factor for gradient in gradients)
