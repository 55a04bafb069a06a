"""MACE: what other tokens know of the concept goes in closed form, what its own say by LoRA, and closed form fuses both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import interpolate

from sdr1.base.errors import UserError
from sdr1.erasers import layers, maps, ridge
from sdr1.erasers.adapters import Adapters, LowRank
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, predict, turns
from sdr1.models import texts

_OF_A_TOKEN = 7e-7
"""preserve_scale of the code, which has the states of some 617,000 captions of 77 tokens: 33 for all together."""


class Pictures(NamedTuple):
    """Of one concept: latents (N, C, H, W), what they are conditioned on (N, L, D), the tokens that are looked at (N, L), and
    where the concept is seen, 0 or 1, (N, 1, H, W)."""

    latents: torch.Tensor
    states: torch.Tensor
    looked: torch.Tensor
    concept: torch.Tensor


class Mace(Eraser):
    """A: W minimises sum |W c - W0 c*|^2 over the tokens that a prompt and its twin share. B: a LoRA for each concept minimises
    sum over layers of |attention to the concept's tokens and to the padding, where it is seen|. C: W minimises
    sum |W c - (W_A + LoRA_i) c|^2 over all tokens of concept i's prompts. A and C keep W0 r for the states r of other prompts.
    Sections 3.2 to 3.4 of the paper."""

    name = "mace"
    kind = "closed form"
    changes = "keys and values of cross-attention"
    needs = "prompts and twins; draws its own latents"
    source = "MACE (arXiv 2403.06135); Shilin-LU/MACE"
    sandbox: ClassVar = {
        "templates": ("{}",),
        "closeness": 0.05,
        "separate": False,
        "rank": 4,
        "images": 64,
        "steps": 8,
        "guidance": 1.5,
        "learning_rate": 1e-3,
        "updates": 60,
        "batch": 16,
    }

    templates: tuple[str, ...] = Field(
        ("{}", "a photo of {}", "an image of {}", "a painting of {}", "{} in a photo", "a scene with {}"),
        min_length=1,
        description="Texts around each prompt and its twin; the code has 31.",
    )
    closeness: FiniteFloat = Field(
        0.0, ge=0, le=1e6, description="How near A and C stay to the weights they begin at; lamb."
    )
    prior: FiniteFloat = Field(
        33.0, ge=0, le=1e9, description="Weight of all kept states together, where an erased one has 1."
    )
    first_prior: Literal["paper", "released"] = Field(
        "paper", description="In the code that of A is scaled by 7e-7 twice, and so is next to nothing."
    )
    separate: bool = Field(
        True, description="A LoRA for each word, of the prompts that name it; or one for all prompts."
    )
    rank: int = Field(1, ge=1, le=1024, description="Of the adapters.")
    mask: Literal["twins", "none"] = Field(
        "twins",
        description="Where a drawing shows the concept: where its twin from the same noise is another, or everywhere. The paper "
        "has a segmentation model's masks.",
    )
    threshold: FiniteFloat = Field(0.3, ge=0, le=1, description="Of the largest difference from the twin.")
    images: int = Field(8, ge=1, le=10**6, description="Drawings for a LoRA.")
    steps: int = Field(30, ge=1, le=1000, description="Of these drawings.")
    guidance: FiniteFloat = Field(7.5, ge=1, le=100, description="Of these drawings.")
    learning_rate: FiniteFloat = Field(1e-5, gt=0, le=1, description="Of AdamW.")
    max_norm: FiniteFloat = Field(1.0, gt=0, le=1e6, description="To which gradients are clipped.")
    updates: int = Field(120, ge=0, le=10**7, description="Of each LoRA.")
    batch: int = Field(1, ge=1, le=4096, description="Latents of an update.")

    def unet_evaluations(self, task: Task) -> int:
        updates = self.updates * self.batch * (1 + BACKWARD)
        return len(self._groups(task)) * (self.images * self._drawing + updates)

    @property
    def _drawing(self) -> int:
        """UNet evaluations of a drawing, and of its twin where there is one."""
        return self.steps * cost_of_a_step(self.guidance) * (2 if self.mask == "twins" else 1)

    def _groups(self, task: Task) -> list[list[int]]:
        """Unsafe prompts by the first word that each names; those that name none are one more."""
        if not self.separate:
            return [list(range(len(task.unsafe)))]
        named = {place: word for word in reversed(task.words) for place in task.naming((word,))}
        groups: dict[str, list[int]] = {}
        for place in range(len(task.unsafe)):
            groups.setdefault(named.get(place, ""), []).append(place)
        return list(groups.values())

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, random, groups = pipeline.unet, task.generator(self.name), self._groups(task)
        pictures = self._draw(pipeline, task, groups, meter, random)
        origin = {name: layer.weight.detach().clone() for name, layer in layers.kv(unet).items()}
        kept = texts.states(pipeline, task.retain or [""]).flatten(0, 1)
        keys, targets = self._shared(pipeline, task)
        prior = self.prior * (_OF_A_TOKEN if self.first_prior == "released" else 1)
        self._fit(unet, origin, keys, lambda name: targets @ origin[name].T, kept, prior)
        updates = meter.affordable(self.updates, len(groups) * self.batch * (1 + BACKWARD))
        with torch.no_grad():
            begun = {name: layer.weight.clone() for name, layer in layers.kv(unet).items()}
        loras = [self._lora(pipeline, each, task, updates, random) for each in pictures]
        concepts = [self._states(pipeline, [task.unsafe[place] for place in group]) for group in groups]

        def told(name: str) -> torch.Tensor:
            each = zip(concepts, loras, strict=True)
            return torch.cat([states @ (begun[name] + lora[name]).T for states, lora in each])

        self._fit(unet, origin, torch.cat(concepts), told, kept, self.prior)

    def _draw(
        self, pipeline: Any, task: Task, groups: list[list[int]], meter: Meter, random: torch.Generator
    ) -> list[Pictures]:
        sampling = Sampling(pipeline, replace(task.sampler, steps=self.steps), self.guidance)
        empty = texts.states(pipeline, [""])
        unsafe, neutral = texts.states(pipeline, task.unsafe), texts.states(pipeline, task.neutral)
        looked = maps.tokens(pipeline, task.unsafe, task.words, "both").to(unsafe.device)
        # As many as the budget pays; the first has to be.
        count = max(1, meter.affordable(self.images, len(groups) * self._drawing))
        found = []
        for group in groups:
            chosen = torch.tensor(group)[turns(len(group), count, random)]
            noise = sampling.noise(count, random)
            latents = sampling.pool(pipeline.unet, unsafe, chosen, empty, noise)
            concept = torch.ones_like(latents[:, :1])
            if self.mask == "twins":
                twins = sampling.pool(pipeline.unet, neutral, chosen, empty, noise)
                concept = differs(latents, twins, self.threshold)
            found.append(Pictures(latents, unsafe[chosen], looked[chosen], concept))
        return found

    def _texts(self, prompts: Sequence[str]) -> list[str]:
        return [template.replace("{}", prompt).strip() for prompt in prompts for template in self.templates]

    def _states(self, pipeline: Any, prompts: Sequence[str]) -> torch.Tensor:
        """Of all tokens of the prompts in their templates, shape (N, D)."""
        return texts.states(pipeline, self._texts(prompts)).flatten(0, 1)

    def _shared(self, pipeline: Any, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
        """States of the tokens that prompts share with their twins, and the twins' at these tokens; both (N, D)."""
        unsafe, neutral = self._texts(task.unsafe), self._texts(task.neutral)
        length, keys, targets = pipeline.tokenizer.model_max_length, [], []
        read = [
            pipeline.tokenizer(each, truncation=True, max_length=length).input_ids
            for each in (unsafe, neutral)
        ]
        states = zip(texts.states(pipeline, unsafe), texts.states(pipeline, neutral), *read, strict=True)
        for one, other, ids, twins in states:
            here, there = shared(ids, twins, length)
            keys.append(one[here])
            targets.append(other[there])
        return torch.cat(keys), torch.cat(targets)

    def _fit(
        self,
        unet: Any,
        origin: Mapping[str, torch.Tensor],
        keys_ND: torch.Tensor,
        values: Callable[[str], torch.Tensor],
        kept_MD: torch.Tensor,
        prior: float,
    ) -> None:
        """Least squares for every key and value projection: `values` are (N, E), by its name."""
        states = torch.cat([keys_ND, kept_MD])
        if self.closeness == 0 and len(states) < states.shape[1]:
            raise UserError(
                f"closeness: 0: {len(states)} tokens do not determine weights of {states.shape[1]}; give more prompts to keep, "
                "or e.g. closeness=0.5"
            )
        weights = torch.cat([torch.ones(len(keys_ND)), torch.full((len(kept_MD),), prior / len(kept_MD))])
        with torch.no_grad():
            for name, layer in layers.kv(unet).items():
                wanted = torch.cat([values(name), kept_MD @ origin[name].T])
                layer.weight.copy_(
                    ridge.solve(layer.weight, states, wanted, weights.to(states.device), self.closeness)
                )

    def _lora(
        self, pipeline: Any, pictures: Pictures, task: Task, updates: int, random: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """What a LoRA adds to each key and value projection, shape (E, D), after training."""
        unet, sampling = pipeline.unet, Sampling(pipeline, task.sampler, self.guidance)
        held = Adapters({name: LowRank(each, self.rank, self.rank) for name, each in layers.kv(unet).items()})
        with held.trained_on(unet) as trained:
            optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
            for _ in range(updates):
                rows = torch.randint(len(pictures.latents), (self.batch,), generator=random)
                latents, states, looked, concept = (each[rows] for each in pictures)
                noisy, times, _ = sampling.noised(latents, random)
                with maps.recorded(unet) as seen:
                    predict(unet, noisy, times, states)
                attention(seen, looked, concept).backward()
                torch.nn.utils.clip_grad_norm_(trained, self.max_norm)
                optimizer.step()
                optimizer.zero_grad()
        return {name: each.weight().detach() for name, each in held.items()}


def differs(latents_NCHW: torch.Tensor, twins_NCHW: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where drawings are others than their twins, by a share of the largest difference; 0 or 1, shape (N, 1, H, W)."""
    difference = (latents_NCHW - twins_NCHW).abs().mean(1, keepdim=True)
    return (difference >= threshold * difference.amax((2, 3), keepdim=True)).to(latents_NCHW)


def shared(ids: Sequence[int], twins: Sequence[int], length: int) -> tuple[list[int], list[int]]:
    """Positions of the tokens that two texts begin and end with alike, and of as much padding as both have; `ids` are without
    padding, `length` is with it."""
    shorter = min(len(ids), len(twins))
    start = next((n for n in range(shorter) if ids[n] != twins[n]), shorter)
    alike = next((n for n in range(shorter - start) if ids[-1 - n] != twins[-1 - n]), shorter - start)
    rest = alike + length - max(len(ids), len(twins))
    return (
        [*range(start), *range(len(ids) - alike, len(ids) - alike + rest)],
        [*range(start), *range(len(twins) - alike, len(twins) - alike + rest)],
    )


def attention(
    seen: Mapping[str, torch.Tensor], looked_BL: torch.Tensor, concept_B1HW: torch.Tensor
) -> torch.Tensor:
    """Sum over layers of the norm of the probabilities at those tokens and places, averaged over samples."""
    total = torch.zeros((), device=looked_BL.device)
    for probabilities in seen.values():
        side = round(probabilities.shape[2] ** 0.5)
        places = interpolate(concept_B1HW, size=(side, side), mode="nearest").flatten(1)
        chosen = probabilities * places[:, None, :, None] * looked_BL[:, None, None].to(probabilities)
        total = total + torch.linalg.vector_norm(chosen.flatten(1), dim=1).mean()
    return total
