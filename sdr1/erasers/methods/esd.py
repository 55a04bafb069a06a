"""ESD: fine-tune the UNet so that the concept's prompt predicts what guides away from it; the x and u variants."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import mse_loss

from sdr1.erasers import layers
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_stop, predict
from sdr1.models import texts


class EsdX(Eraser):
    """|e(x, t, c) - [e*(x, t) - eta (e*(x, t, c) - e*(x, t))]|^2 on latents x that the model draws for prompt c and stops on
    the way; e* is the base. Section 4.1 of the paper, equation 7."""

    name = "esd-x"
    kind = "fine-tuning"
    changes = "cross-attention"
    needs = "prompts; draws its own latents"
    source = "Erasing Concepts from Diffusion Models (arXiv 2303.07345); rohitgandikota/erasing"
    sandbox: ClassVar = {"guidance": 1.5, "learning_rate": 3e-4, "updates": 300, "batch": 16}

    parameters: layers.Rule = Field(
        "attn2",
        description="Trained ones. ESD-x: `attn2`, or `kv` for the strict variant. ESD-u: `noxattn` in the paper's code, "
        "`not-attn2` in the code of today.",
    )
    eta: FiniteFloat = Field(
        1.0,
        ge=0,
        le=100,
        description="Strength. The code of today calls it negative_guidance 2, which is 1 of this formula.",
    )
    guidance: FiniteFloat = Field(3.0, ge=1, le=100, description="Of the latents' drawing.")
    drawn_by: Literal["trained", "base"] = Field(
        "trained", description="Who draws them: the model as it is now, or the base, as in the code of today."
    )
    times: Literal["matched", "released"] = Field(
        "matched",
        description="Timestep that a latent is shown at: its own, or, as in the paper's code, one of the bucket that its noise "
        "lies 39 to 58 of 1000 below.",
    )
    learning_rate: FiniteFloat = Field(1e-5, gt=0, le=1, description="Of Adam; 5e-5 in the code of today.")
    updates: int = Field(1000, ge=1, le=10**7, description="200 in the code of today.")
    batch: int = Field(1, ge=1, le=4096, description="Latents of an update; they stop at the same step.")

    def unet_evaluations(self, task: Task) -> int:
        drawn = cost_of_a_stop(task.sampler.steps, self.guidance)
        return round(self.updates * self.batch * (drawn + 2 + 1 + BACKWARD))

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, base = pipeline.unet, copy.deepcopy(pipeline.unet)
        sampling = Sampling(pipeline, task.sampler, self.guidance)
        empty, states = texts.states(pipeline, [""]), texts.states(pipeline, task.unsafe)
        trained = list(layers.select(unet, self.parameters).values())
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        random = task.generator(self.name)
        for _ in range(self.updates):
            steps, time = self._stop(sampling, random)
            if not meter.affords(self.batch * (steps * sampling.cost + 2 + 1 + BACKWARD)):
                break
            chosen = states[torch.randint(len(states), (self.batch,), generator=random).to(states.device)]
            noise = sampling.noise(self.batch, random)
            latents = sampling.draw(base if self.drawn_by == "base" else unet, chosen, empty, noise, steps)
            target = away(base, latents, time, chosen, empty, self.eta)
            mse_loss(predict(unet, latents, time, chosen), target).backward()
            optimizer.step()
            optimizer.zero_grad()

    def _stop(self, sampling: Sampling, random: torch.Generator) -> tuple[int, torch.Tensor]:
        """After how many steps the drawing stops, and the timestep that its latents are shown at."""
        count = len(sampling.times)
        step = int(torch.randint(count, (), generator=random))
        if self.times == "matched":
            return step, sampling.times[step]
        width = len(sampling.alpha_bars) / count
        low, high = round(step * width), round((step + 1) * width)
        # The released sampler leaves its first step out and stops one early: two steps less noise than the bucket's.
        time = torch.randint(low, high, (), generator=random).to(sampling.times.device)
        return min(count + 1 - step, count), time


class EsdU(EsdX):
    """The same loss on everything but cross-attention, for concepts that are not bound to a word."""

    name = "esd-u"
    changes = "everything but cross-attention"
    sandbox: ClassVar = {**EsdX.sandbox, "learning_rate": 2e-4}

    parameters: layers.Rule = Field("noxattn", description=EsdX.model_fields["parameters"].description)


@torch.no_grad()
def away(
    base: Any,
    latents_BCHW: torch.Tensor,
    time: torch.Tensor,
    states_BLD: torch.Tensor,
    empty_1LD: torch.Tensor,
    eta: float,
) -> torch.Tensor:
    """e*(x, t) - eta (e*(x, t, c) - e*(x, t)) of a frozen UNet, shape (B, C, H, W)."""
    both = torch.cat([empty_1LD.expand_as(states_BLD), states_BLD])
    without, given = predict(base, latents_BCHW.repeat(2, 1, 1, 1), time, both).chunk(2)
    return without - eta * (given - without)
