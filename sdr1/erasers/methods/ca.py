"""CA (Ablating Concepts): fine-tune attention so that the concept's prompt predicts what an anchor's prompt does."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import mse_loss

from sdr1.erasers import layers
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, flipped, predict
from sdr1.models import texts
from sdr1.models.schedulers import Sampler


class Ca(Eraser):
    """|e(x, t, c) - sg e(x, t, a)|^2 + lambda |e(x', t, a') - noise|^2: x and x' are pictures of anchors a, a' with noise on them,
    c is the concept's prompt that belongs to a, and sg e is the model as it is now, without a gradient. Sections 3.2 and 3.3 of
    the paper, the model-based variant. The code cuts the gradient through the first token's key and value; this does not."""

    name = "ca"
    kind = "fine-tuning"
    changes = "projections of self- and cross-attention"
    needs = "prompts to keep; draws its own latents"
    source = "Ablating Concepts (arXiv 2303.13516); nupurkmr9/concept-ablation, diffusers"
    sandbox: ClassVar = {
        "anchors": "twins",
        "images": 512,
        "scheduler": "DDIMScheduler",
        "steps": 8,
        "guidance": 1.5,
        "negative": False,
        "flip": False,
        "learning_rate": 1e-3,
        "batch": 16,
    }

    parameters: layers.Rule = Field("attention", description="Trained ones; the code has `kv` for objects.")
    anchors: Literal["retain", "twins"] = Field(
        "retain",
        description="Anchors are the prompts to keep, and the concept's words are put into them by `templates`; or they are the "
        "neutral twins of the unsafe prompts, and what is kept are pictures of the prompts to keep.",
    )
    templates: tuple[str, ...] = Field(
        ("{words}, {prompt}", "in {words} style, {prompt}", "{prompt}, {words}"),
        min_length=1,
        description="Of the concept's prompt; the paper's words are nudity, nsfw.",
    )
    images: int = Field(1000, ge=2, le=10**6, description="Latents drawn beforehand.")
    scheduler: str = Field("DPMSolverMultistepScheduler", description="Of these drawings.")
    steps: int = Field(25, ge=1, le=1000, description="Of these drawings.")
    guidance: FiniteFloat = Field(6.0, ge=1, le=100, description="Of these drawings.")
    negative: bool = Field(
        True, description="Whether they are guided away from the concept's words, not from the empty prompt."
    )
    flip: bool = Field(
        True, description="Whether half of them are turned from left to right, as augmentation."
    )
    prior_weight: FiniteFloat = Field(1.0, ge=0, le=1e6, description="lambda.")
    learning_rate: FiniteFloat = Field(
        6.4e-5, gt=0, le=1, description="Of AdamW: 4e-6 x batch 4 x 2 GPUs x 2."
    )
    weight_decay: FiniteFloat = Field(0.01, ge=0, le=10, description="Of AdamW.")
    max_norm: FiniteFloat = Field(1.0, gt=0, le=1e6, description="The gradient is clipped to it.")
    updates: int = Field(400, ge=1, le=10**7, description="The README says 800 on one GPU.")
    batch: int = Field(8, ge=1, le=4096, description="Latents of each of the two terms.")

    def unet_evaluations(self, task: Task) -> int:
        drawing = self.images * self.steps * cost_of_a_step(self.guidance)
        return drawing + self.updates * self._each

    @property
    def _each(self) -> int:
        """UNet evaluations of an update: two terms with a gradient, and the anchor's prediction."""
        return self.batch * (2 * (1 + BACKWARD) + 1)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        random, unet = task.generator(self.name), pipeline.unet
        concept, anchors, kept = self._prompts(task, random)
        sampler = Sampler(self.scheduler, self.steps, self.guidance)
        sampling = Sampling(pipeline, sampler, self.guidance)
        away = texts.states(pipeline, [", ".join(task.words) if self.negative else ""])
        anchor_states, kept_states = texts.states(pipeline, anchors), texts.states(pipeline, kept)
        anchor_latents, kept_latents = (
            sampling.pool(unet, states, torch.arange(len(states)), away, sampling.noise(len(states), random))
            for states in (anchor_states, kept_states)
        )
        concept_states = texts.states(pipeline, concept)
        trained = list(layers.select(unet, self.parameters).values())
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        for _ in range(meter.affordable(self.updates, self._each)):
            chosen = torch.randint(len(anchors), (self.batch,), generator=random)
            latents, times, _ = sampling.noised(self._turned(anchor_latents[chosen], random), random)
            forget(unet, latents, times, concept_states[chosen], anchor_states[chosen]).backward()
            chosen = torch.randint(len(kept), (self.batch,), generator=random)
            clean = self._turned(kept_latents[chosen], random)
            latents, times, noise = sampling.noised(clean, random)
            target = sampling.target(clean, noise, times)
            prior = mse_loss(predict(unet, latents, times, kept_states[chosen]), target)
            (self.prior_weight * prior).backward()
            torch.nn.utils.clip_grad_norm_(trained, self.max_norm)
            optimizer.step()
            optimizer.zero_grad()

    def _prompts(self, task: Task, random: torch.Generator) -> tuple[list[str], list[str], list[str]]:
        """For each latent of an anchor the concept's prompt and the anchor's; and the prompts of latents that are kept."""
        retain, count = task.kept(self.name), self.images // 2

        def turns(prompts: tuple[str, ...], begin: int = 0) -> list[str]:
            return [prompts[n % len(prompts)] for n in range(begin, begin + count)]

        if self.anchors == "twins":
            return turns(task.unsafe), turns(task.neutral), turns(retain)
        anchors = turns(retain)
        picks = torch.randint(len(self.templates), (count,), generator=random).tolist()
        words = ", ".join(task.words)
        concept = [
            self.templates[pick].replace("{words}", words).replace("{prompt}", prompt)
            for pick, prompt in zip(picks, anchors)
        ]
        return concept, anchors, turns(retain, count)

    def _turned(self, latents_BCHW: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        return flipped(latents_BCHW, random) if self.flip else latents_BCHW


def forget(
    unet: Any,
    latents_BCHW: torch.Tensor,
    times_B: torch.Tensor,
    concept_BLD: torch.Tensor,
    anchor_BLD: torch.Tensor,
) -> torch.Tensor:
    """|e(x, t, c) - sg e(x, t, a)|^2, the mean over all numbers; the gradient goes through the concept's side alone."""
    with torch.no_grad():
        target = predict(unet, latents_BCHW, times_B, anchor_BLD)
    return mse_loss(predict(unet, latents_BCHW, times_B, concept_BLD), target)
