"""Receler: small nets behind cross-attention that erase the concept where the picture shows it, against soft prompts that
try to bring it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import gelu, interpolate, mse_loss

from sdr1.base.errors import UserError
from sdr1.base.section import Section
from sdr1.erasers import layers, maps
from sdr1.erasers.adapters import Adapters
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Patch, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_stop, predict
from sdr1.models import texts


class Constants(Section):
    width: int = Field(128, ge=1, le=4096, description="Of each net's hidden layer.")


class Net(torch.nn.Module):
    """Two linear layers with GELU between; it begins as nothing."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = torch.nn.Linear(channels, width)
        self.up = torch.nn.Linear(width, channels)
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.up(gelu(self.down(given)))


def nets(unet: Any, by: Constants) -> Adapters:
    """A fresh one behind every cross-attention."""
    found = layers.cross_attentions(unet)
    beside = {
        name: Net(each.to_out[0].out_features, by.width).to(unet.device) for name, each in found.items()
    }
    return Adapters(beside, sees="output")


class RecelerPatch(Patch):
    """h + r(h) in place of every cross-attention's output h. Tensors: the nets' own."""

    Settings: ClassVar = Constants

    def install(self, pipeline: Any) -> None:
        held = nets(pipeline.unet, self.settings)
        held.load(self.tensors, "receler")
        held.attach(pipeline.unet)


class Receler(Constants, Eraser):
    """|e(x, t, c') - [e*(x, t) - eta (e*(x, t, c) - e*(x, t))]|^2 + w |r(h) (1 - M)|^2: x are latents that the model draws for
    prompt c, c' is c with soft tokens that minimise |e(x, t, c') - e*(x, t, c)|^2, and M is where the base's attention to the
    concept is large. Sections 3.2 to 3.4 of the paper."""

    name = "receler"
    kind = "adapter"
    changes = "small nets behind cross-attention"
    needs = "prompts; draws its own latents"
    source = "Receler (arXiv 2311.17717); jasper0314-huang/Receler"
    patch = RecelerPatch
    sandbox: ClassVar = {
        "width": 16,
        "guidance": 1.5,
        "map_tokens": "padding",
        "map_side": 8,
        "threshold": 0.5,
        "soft_tokens": 4,
        "inner": 10,
        "learning_rate": 3e-3,
        "updates": 200,
        "batch": 8,
    }

    eta: FiniteFloat = Field(1.0, ge=0, le=100, description="Strength, as of ESD.")
    guidance: FiniteFloat = Field(3.0, ge=1, le=100, description="Of the latents' drawing.")
    mask_weight: FiniteFloat = Field(0.1, ge=0, le=1e6, description="w.")
    map_tokens: maps.Tokens = Field(
        "words", description="Attention to which tokens is attention to the concept."
    )
    map_side: int = Field(16, ge=1, le=1024, description="Layers with maps of so many places a side decide.")
    threshold: FiniteFloat = Field(
        0.1, ge=0, le=1, description="From which share of a map's range on a place belongs to the concept."
    )
    attack: bool = Field(
        True,
        description="As in the paper. In the released code the soft tokens never reach the UNet: false does the same.",
    )
    soft_tokens: int = Field(16, ge=1, le=75, description="Text states behind the prompt's last word.")
    inner: int = Field(
        50, ge=1, le=1000, description="Steps of the soft tokens of an update; in the last the nets learn."
    )
    attack_rate: FiniteFloat = Field(
        0.1, gt=0, le=100, description="Of the soft tokens' Adam; its weight decay too."
    )
    learning_rate: FiniteFloat = Field(3e-4, gt=0, le=1, description="Of the nets' Adam.")
    updates: int = Field(500, ge=1, le=10**7, description="Of the erasers.")
    batch: int = Field(1, ge=1, le=4096, description="Latents of an update; they stop at the same step.")

    def unet_evaluations(self, task: Task) -> int:
        drawn = cost_of_a_stop(task.sampler.steps, self.guidance)
        return round(self.updates * self.batch * (drawn + self._each))

    @property
    def _each(self) -> int:
        """UNet evaluations of an update's latent, once it is drawn."""
        return 2 + (self.inner if self.attack else 1) * (1 + BACKWARD)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> Patch:
        unet, random = pipeline.unet, task.generator(self.name)
        sampling = Sampling(pipeline, task.sampler, self.guidance)
        empty, states = texts.states(pipeline, [""]), texts.states(pipeline, task.unsafe)
        looked = maps.tokens(pipeline, task.unsafe, task.words, self.map_tokens).to(states.device)
        soft = self._soft_places(pipeline, task).to(states.device)
        held = nets(unet, self)
        with held.trained_on(unet) as trained:
            optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
            for _ in range(self.updates):
                steps = int(torch.randint(len(sampling.times), (), generator=random))
                if not meter.affords(self.batch * (steps * sampling.cost + self._each)):
                    break
                chosen = torch.randint(len(states), (self.batch,), generator=random).to(states.device)
                noise, given = sampling.noise(self.batch, random), states[chosen]
                latents, time = sampling.draw(unet, given, empty, noise, steps), sampling.times[steps]
                with torch.no_grad(), held.switched_off(), maps.recorded(unet) as seen:
                    both = torch.cat([empty.expand_as(given), given])
                    without, base = predict(unet, latents.repeat(2, 1, 1, 1), time, both).chunk(2)
                if self.attack:
                    held.requires_grad_(False)
                    places = soft[chosen]
                    given = attacked(unet, latents, time, given, places, base, self, random)
                    held.requires_grad_(True)
                concept = mask(seen, looked[chosen], self.map_side, self.threshold)
                with answers(held) as added:
                    predicted = predict(unet, latents, time, given)
                loss = mse_loss(predicted, without - self.eta * (base - without))
                (loss + self.mask_weight * outside(added, concept)).backward()
                optimizer.step()
                optimizer.zero_grad()
        return self.with_constants(held.tensors())

    def _soft_places(self, pipeline: Any, task: Task) -> torch.Tensor:
        """Positions of each unsafe prompt's soft tokens, shape (N, S): as many for all, so the last ones where it is long."""
        length = pipeline.tokenizer.model_max_length
        if self.soft_tokens >= length:
            raise UserError(
                f"soft_tokens: {self.soft_tokens}: a prompt has {length} with its start token; give fewer"
            )
        begin = maps.ends(pipeline, task.unsafe).clamp(max=length - self.soft_tokens)
        return begin[:, None] + torch.arange(self.soft_tokens)


def attacked(
    unet: Any,
    latents_BCHW: torch.Tensor,
    time: torch.Tensor,
    states_BLD: torch.Tensor,
    places_BS: torch.Tensor,
    base_BCHW: torch.Tensor,
    by: Receler,
    random: torch.Generator,
) -> torch.Tensor:
    """States with soft tokens at those places after `inner` - 1 steps towards the base's prediction, shape (B, L, D)."""
    shape = (*places_BS.shape, states_BLD.shape[-1])
    soft = torch.rand(shape, generator=random).to(states_BLD).requires_grad_(True)
    places = places_BS[..., None].expand(shape)
    optimizer = torch.optim.Adam([soft], lr=by.attack_rate, weight_decay=by.attack_rate)
    for _ in range(by.inner - 1):
        mse_loss(predict(unet, latents_BCHW, time, states_BLD.scatter(1, places, soft)), base_BCHW).backward()
        optimizer.step()
        optimizer.zero_grad()
    return states_BLD.scatter(1, places, soft.detach())


def mask(seen: dict[str, torch.Tensor], looked_BL: torch.Tensor, side: int, threshold: float) -> torch.Tensor:
    """Where the last B samples of recorded maps look at those tokens, 0 or 1; shape (B, 1, side, side).

    Raises:
        UserError: no layer has maps of that side.
    """
    of_that_side = [each for each in seen.values() if each.shape[2] == side**2]
    if not of_that_side:
        sides = sorted({round(each.shape[2] ** 0.5) for each in seen.values()})
        raise UserError(
            f"map_side: {side}: no cross-attention has maps of that side; use {', '.join(map(str, sides))}"
        )
    size = len(looked_BL)
    mean_BNL = torch.stack([each[-size:].mean(1) for each in of_that_side]).mean(0)
    weights = looked_BL.to(mean_BNL) / looked_BL.sum(1, keepdim=True).clamp(min=1)
    map_BN = (mean_BNL * weights[:, None]).sum(-1)
    low, high = map_BN.amin(1, keepdim=True), map_BN.amax(1, keepdim=True)
    share = (map_BN - low) / (high - low).clamp(min=torch.finfo(map_BN.dtype).tiny)
    return (share >= threshold).to(mean_BNL).view(size, 1, side, side)


@contextmanager
def answers(held: Adapters) -> Iterator[list[torch.Tensor]]:
    """Context in which each net's answers of shape (B, H x W, E) are kept."""
    found: list[torch.Tensor] = []
    handles = [each.register_forward_hook(lambda _, __, out: found.append(out)) for _, each in held.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def outside(added: list[torch.Tensor], concept_B1HW: torch.Tensor) -> torch.Tensor:
    """Mean over layers of sum |r (1 - M)|^2 / sum (1 - M), with the mean square over channels."""
    terms = []
    for each in added:
        side = round(each.shape[1] ** 0.5)
        rest = 1 - interpolate(concept_B1HW, size=(side, side), mode="nearest").flatten(1)
        terms.append((each.square().mean(-1) * rest).sum() / rest.sum().clamp(min=1))
    return torch.stack(terms).mean()
