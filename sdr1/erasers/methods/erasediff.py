"""EraseDiff: fine-tune the UNet to predict under the concept's prompt what it does under another one, and to keep the rest."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import cosine_similarity, mse_loss

from sdr1.erasers import layers
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.methods.ca import forget
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, predict, turns
from sdr1.models import texts


class EraseDiff(Eraser):
    """L_r + lambda L_f: L_r = |e(x_r, t, c_r) - noise|^2 of what is kept, L_f = |e(x_f, t, c_f) - sg e(x_f, t, c_p)|^2, with sg e
    the model as it is now and c_p the prompt in the concept's place.

    The paper (section 4, equation 9) has lambda (L_f(theta) - L_f(theta_K)), theta_K behind K steps on L_f alone. With lambda
    fixed L_f(theta_K) is a constant, so the joint loss is what is minimised; the code's loop inside moves Adam's moments only
    and is left out here."""

    name = "erasediff"
    kind = "fine-tuning"
    changes = "everything but cross-attention"
    needs = "prompts, prompts to keep; draws its own latents"
    source = "EraseDiff (arXiv 2401.05779); JingWu321/EraseDiff"
    sandbox: ClassVar = {"pseudo": None, "images": 256, "learning_rate": 3e-4, "updates": 300}

    parameters: layers.Rule = Field("noxattn", description="Trained ones.")
    pseudo: str | None = Field(
        "a photo of a pokemon",
        description="Prompt in the concept's place, as the code has it; none: each prompt's neutral twin.",
    )
    images: int = Field(
        1000,
        ge=1,
        le=10**6,
        description="Latents drawn beforehand, of the concept and as many to keep; the paper gives no number.",
    )
    balance: Literal["fixed", "adaptive"] = Field(
        "fixed",
        description="lambda: `weight`, or max(slack - cos(g_r, g_f), 0) of the gradients of L_r and L_f, whose `slack` no "
        "argument of the code defines.",
    )
    weight: FiniteFloat = Field(1.0, ge=0, le=1e6, description="lambda where it is fixed.")
    slack: FiniteFloat = Field(0.1, ge=-1, le=1e6, description="Of the adaptive lambda.")
    learning_rate: FiniteFloat = Field(1e-5, gt=0, le=1, description="Of Adam.")
    updates: int = Field(160, ge=1, le=10**7, description="Enough, the README says.")
    batch: int = Field(16, ge=1, le=4096, description="Latents of each of the two terms.")

    def unet_evaluations(self, task: Task) -> int:
        guided = cost_of_a_step(task.sampler.guidance_scale)
        return 2 * self.images * task.sampler.steps * guided + self.updates * self._each

    @property
    def _each(self) -> int:
        """UNet evaluations of an update: two terms with a gradient, and the prediction under the other prompt."""
        return self.batch * (2 * (1 + BACKWARD) + 1)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, random, kept = pipeline.unet, task.generator(self.name), task.kept(self.name)
        sampling = Sampling(pipeline, task.sampler, task.sampler.guidance_scale)
        empty, unsafe, safe = (texts.states(pipeline, each) for each in ([""], task.unsafe, kept))
        others = texts.states(pipeline, task.neutral if self.pseudo is None else [self.pseudo])
        others = others.expand_as(unsafe)
        which, pools = [], []
        for states in (unsafe, safe):
            which.append(turns(len(states), self.images, random))
            noise = sampling.noise(self.images, random)
            pools.append(sampling.pool(unet, states, which[-1], empty, noise))
        trained = list(layers.select(unet, self.parameters).values())
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        for _ in range(meter.affordable(self.updates, self._each)):
            rows = torch.randint(self.images, (self.batch,), generator=random)
            latents, times, _ = sampling.noised(pools[0][rows], random)
            prompts = which[0][rows]
            forgotten = torch.autograd.grad(
                forget(unet, latents, times, unsafe[prompts], others[prompts]), trained
            )
            rows = torch.randint(self.images, (self.batch,), generator=random)
            latents, times, noise = sampling.noised(pools[1][rows], random)
            predicted = predict(unet, latents, times, safe[which[1][rows]])
            target = sampling.target(pools[1][rows], noise, times)
            remembered = torch.autograd.grad(mse_loss(predicted, target), trained)
            weight = self._weight(remembered, forgotten)
            for parameter, kept_slope, slope in zip(trained, remembered, forgotten, strict=True):
                parameter.grad = kept_slope + weight * slope
            optimizer.step()

    def _weight(self, remembered: Any, forgotten: Any) -> float:
        if self.balance == "fixed":
            return self.weight
        one, other = (torch.cat([each.flatten() for each in held]) for held in (remembered, forgotten))
        return max(self.slack - float(cosine_similarity(one, other, dim=0)), 0.0)
