"""FMN (Forget-Me-Not): fine-tune the UNet until no place of a picture looks at the tokens that carry the concept."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, FiniteFloat

from sdr1.erasers import layers, maps
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, predict, turns
from sdr1.models import texts


class Fmn(Eraser):
    """The norm, not squared, of cross-attention's probabilities at the concept's tokens, over all layers, heads and places, on
    pictures of the concept with noise on them. Section 3.2 of the paper, attention re-steering. Nothing keeps other pictures, and
    Adam moves at nearly one speed on such a loss: the number of updates is the strength.

    The code is made for Stable Diffusion 2.1 and has no configuration for nudity; textual inversion, which it runs before where
    no word names a concept, is left out."""

    name = "fmn"
    kind = "fine-tuning"
    changes = "the whole UNet"
    needs = "prompts; draws its own latents"
    source = "Forget-Me-Not (arXiv 2303.17591); SHI-Labs/Forget-Me-Not"
    sandbox: ClassVar = {
        "template": "{prompt}",
        "images": 64,
        "learning_rate": 1e-4,
        "updates": 60,
        "batch": 16,
    }

    parameters: layers.Rule = Field(
        "all", description="Trained ones; `attn2` with the code's only_optimize_ca."
    )
    template: str = Field("a photo of {prompt}", description="What is drawn and shown for a prompt.")
    tokens: maps.Tokens = Field(
        "both",
        description="The concept's words, or, with the code's use_pooler, the end and all behind it too.",
    )
    images: int = Field(10, ge=1, le=10**6, description="Pictures of the concept, drawn beforehand.")
    learning_rate: FiniteFloat = Field(2e-6, gt=0, le=1, description="Of AdamW.")
    weight_decay: FiniteFloat = Field(0.01, ge=0, le=10, description="Of AdamW.")
    max_norm: FiniteFloat = Field(1.0, gt=0, le=1e6, description="The gradient is clipped to it.")
    updates: int = Field(35, ge=1, le=10**7, description="The strength, see above.")
    batch: int = Field(1, ge=1, le=4096, description="Latents of an update.")

    def unet_evaluations(self, task: Task) -> int:
        guided = cost_of_a_step(task.sampler.guidance_scale)
        return self.images * task.sampler.steps * guided + self.updates * self._each

    @property
    def _each(self) -> int:
        return self.batch * (1 + BACKWARD)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, random = pipeline.unet, task.generator(self.name)
        sampling = Sampling(pipeline, task.sampler, task.sampler.guidance_scale)
        prompts = [self.template.replace("{prompt}", prompt) for prompt in task.unsafe]
        empty, states = texts.states(pipeline, [""]), texts.states(pipeline, prompts)
        meant = maps.tokens(pipeline, prompts, task.words, self.tokens).to(states)
        which, noise = turns(len(prompts), self.images, random), sampling.noise(self.images, random)
        pool = sampling.pool(unet, states, which, empty, noise)
        trained = list(layers.select(unet, self.parameters).values())
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        for _ in range(meter.affordable(self.updates, self._each)):
            rows = torch.randint(self.images, (self.batch,), generator=random)
            latents, times, _ = sampling.noised(pool[rows], random)
            with maps.recorded(unet) as found:
                predict(unet, latents, times, states[which[rows]])
            attention(found, meant[which[rows]]).backward()
            torch.nn.utils.clip_grad_norm_(trained, self.max_norm)
            optimizer.step()
            optimizer.zero_grad()


def attention(probabilities: dict[str, torch.Tensor], meant_BL: torch.Tensor) -> torch.Tensor:
    """The norm of all probabilities of a sample, each (B, heads, H x W, L), at its meant tokens; averaged over samples."""
    squares = [(held * meant_BL[:, None, None]).square().sum((1, 2, 3)) for held in probabilities.values()]
    return torch.stack(squares).sum(0).sqrt().mean()
