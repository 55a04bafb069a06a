"""SA (Selective Amnesia): continual learning that gives the concept's prompt other pictures and holds the important weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import mse_loss

from sdr1.erasers import layers
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, predict, turns
from sdr1.models import texts

_TIMES_AT_ONCE = 50
"""Timesteps of a sample's gradient that go through the UNet together; the code has 1,000 in 20 parts."""


class Sa(Eraser):
    """|e(x_q, t, c_f) - noise|^2 + |e(x_r, t, c_r) - noise|^2 + lambda sum_i F_i (theta_i - theta*_i)^2: x_q are pictures of the
    neutral twins, under the concept's prompts c_f; x_r are pictures of prompts to keep (replay); F is the Fisher information
    that the base theta* has of them. Section 3.2 of the paper, equation 6, with a surrogate as in its equation 7."""

    name = "sa"
    kind = "fine-tuning"
    changes = "everything but cross-attention"
    needs = "pairs of prompts, prompts to keep; draws its own latents"
    source = "Selective Amnesia (arXiv 2305.10120); clear-nus/selective-amnesia"
    sandbox: ClassVar = {
        "surrogates": 256,
        "replays": 256,
        "fisher_samples": 200,
        "fisher_times": 40,
        "learning_rate": 3e-4,
        "updates": 300,
        "batch": 32,
    }

    parameters: layers.Rule = Field("noxattn", description="Trained ones, as for nudity.")
    surrogates: int = Field(
        1000, ge=1, le=10**6, description="Pictures that the concept shall have, drawn beforehand."
    )
    replays: int = Field(5000, ge=1, le=10**6, description="Pictures to keep, drawn beforehand.")
    fisher_samples: int = Field(5000, ge=1, le=10**6, description="Of them, those that F is the mean over.")
    fisher_times: int = Field(
        1000,
        ge=1,
        le=10**6,
        description="Timesteps of each. A sample's loss is summed over all timesteps before its gradient is squared; fewer stand "
        "for all of them, so F keeps its size.",
    )
    penalty: FiniteFloat = Field(50.0, ge=0, le=1e12, description="lambda.")
    learning_rate: FiniteFloat = Field(
        1.6e-4,
        gt=0,
        le=1,
        description="Of AdamW: 1e-5 x batch 4 x 4 GPUs, which the code multiplies by itself.",
    )
    weight_decay: FiniteFloat = Field(0.01, ge=0, le=10, description="Of AdamW.")
    updates: int = Field(31_500, ge=1, le=10**7, description="500 epochs of 63.")
    batch: int = Field(16, ge=1, le=4096, description="Latents of each of the two terms.")

    def unet_evaluations(self, task: Task) -> int:
        guided = cost_of_a_step(task.sampler.guidance_scale)
        drawn = (self.surrogates + self.replays) * task.sampler.steps * guided
        fisher = self.fisher_samples * self.fisher_times * (1 + BACKWARD)
        return drawn + fisher + self.updates * self._each

    @property
    def _each(self) -> int:
        """UNet evaluations of an update: two terms with a gradient."""
        return self.batch * 2 * (1 + BACKWARD)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, random, kept = pipeline.unet, task.generator(self.name), task.kept(self.name)
        sampling = Sampling(pipeline, task.sampler, task.sampler.guidance_scale)
        prompts = ([""], task.unsafe, task.neutral, kept)
        empty, unsafe, neutral, safe = (texts.states(pipeline, each) for each in prompts)
        terms = []
        for count, drawn, shown in ((self.surrogates, neutral, unsafe), (self.replays, safe, safe)):
            which, noise = turns(len(drawn), count, random), sampling.noise(count, random)
            terms.append((sampling.pool(unet, drawn, which, empty, noise), shown, which))
        trained = list(layers.select(unet, self.parameters).values())
        latents, _, which = terms[1]
        rows = torch.arange(self.fisher_samples) % self.replays
        important = self._fisher(unet, trained, sampling, latents[rows], safe, which[rows], random)
        origin = [parameter.detach().clone() for parameter in trained]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        for _ in range(meter.affordable(self.updates, self._each)):
            for latents, shown, which in terms:
                rows = torch.randint(len(latents), (self.batch,), generator=random)
                noisy, times, noise = sampling.noised(latents[rows], random)
                target = sampling.target(latents[rows], noise, times)
                mse_loss(predict(unet, noisy, times, shown[which[rows]]), target).backward()
            (self.penalty * distance(trained, origin, important)).backward()
            optimizer.step()
            optimizer.zero_grad()

    def _fisher(
        self,
        unet: Any,
        trained: list[torch.nn.Parameter],
        sampling: Sampling,
        latents_NCHW: torch.Tensor,
        states_PLD: torch.Tensor,
        which_N: torch.Tensor,
        random: torch.Generator,
    ) -> list[torch.Tensor]:
        """F of each trained parameter: the mean over samples of the square of the gradient of the loss, which is the mean over
        a sample's numbers, summed over all timesteps."""
        found = [torch.zeros_like(parameter) for parameter in trained]
        every = len(sampling.alpha_bars)
        count = min(self.fisher_times, every)
        for latents, prompt in zip(latents_NCHW, which_N.tolist(), strict=True):
            for times in torch.randperm(every, generator=random)[:count].split(_TIMES_AT_ONCE):
                noise, times = sampling.noise(len(times), random), times.to(latents.device)
                clean = latents.expand_as(noise)
                noisy, target = (each(clean, noise, times) for each in (sampling.diffuse, sampling.target))
                states = states_PLD[prompt].expand(len(times), -1, -1)
                errors = (predict(unet, noisy, times, states) - target).square().mean((1, 2, 3))
                (errors.sum() * every / count).backward()
            for total, parameter in zip(found, trained, strict=True):
                if parameter.grad is not None:
                    total += parameter.grad.square() / len(latents_NCHW)
                    parameter.grad = None
        return found


def distance(
    parameters: list[torch.nn.Parameter], origin: list[torch.Tensor], important: list[torch.Tensor]
) -> torch.Tensor:
    """sum_i F_i (theta_i - theta*_i)^2 over all parameters."""
    each = zip(parameters, origin, important, strict=True)
    return torch.stack([(weight * (parameter - was).square()).sum() for parameter, was, weight in each]).sum()
