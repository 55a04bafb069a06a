"""SPM: a low-rank adapter that turns the concept's predictions, and works for the prompts that are near the concept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from diffusers.optimization import get_scheduler
from pydantic import Field, FiniteFloat
from torch.nn.functional import cosine_similarity, mse_loss

from sdr1.base.section import Section
from sdr1.erasers import layers
from sdr1.erasers.adapters import Adapters, LowRank
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.methods.esd import away
from sdr1.erasers.patches import Call
from sdr1.erasers.protocol import Eraser, Patch, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, predict
from sdr1.models import texts


class Constants(Section):
    rank: int = Field(1, ge=1, le=1024, description="Of every adapter.")
    alpha: FiniteFloat = Field(
        1.0, gt=0, le=1e4, description="What an adapter adds is alpha / rank times its product."
    )
    nearness: Literal["flat", "centred"] = Field(
        "flat",
        description="The gate of a prompt is its largest cosine with a word of the concept: of all text states as one vector, "
        "or of all but the first, less those of the empty prompt. A patch sees states and no words, so the share of the "
        "concept's tokens, which the code takes where it is larger, is left out.",
    )
    power: int = Field(
        1,
        ge=1,
        le=4,
        description="Of the gate: 1 in the paper; the code scales both factors of the product: 2.",
    )


def nearness(
    states_BLD: torch.Tensor, words_NLD: torch.Tensor, empty_1LD: torch.Tensor, kind: str
) -> torch.Tensor:
    """Of each prompt to the nearest word, in [0, 1]; shape (B,)."""
    if kind == "centred":
        states_BLD, words_NLD = states_BLD[:, 1:] - empty_1LD[:, 1:], words_NLD[:, 1:] - empty_1LD[:, 1:]
    cosines_BN = cosine_similarity(states_BLD.flatten(1)[:, None], words_NLD.flatten(1)[None], dim=-1)
    return cosines_BN.amax(1).clamp(0, 1)


class SpmPatch(Patch):
    """The adapters, times the gate of each sample's prompt; the empty half of a guided pair has its prompt's.

    Tensors: the adapters' own, `words`, shape (N, L, D), and `empty`, shape (L, D)."""

    Settings: ClassVar = Constants

    def install(self, pipeline: Any) -> None:
        self._adapters = adapters(pipeline.unet, self.settings)
        self._adapters.load(self.tensors, "spm")
        self._adapters.attach(pipeline.unet)
        pipeline.unet.register_forward_pre_hook(self._gate, with_kwargs=True)

    def _gate(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call.of(args, kwargs)
        empty = self.tensors["empty"][None].to(call.states)
        gates = nearness(call.states, self.tensors["words"].to(call.states), empty, self.settings.nearness)
        if call.guided(empty):
            gates = gates.chunk(2)[1].repeat(2)
        self._adapters.factors = gates**self.settings.power


def adapters(unet: Any, by: Constants) -> Adapters:
    """Fresh ones on every layer of the UNet's transformers."""
    found = layers.transformer_layers(unet)
    return Adapters({name: LowRank(layer, by.rank, by.alpha) for name, layer in found.items()})


class Spm(Constants, Eraser):
    """|e(x, t, c) - [e*(x, t) - eta (e*(x, t, c) - e*(x, t))]|^2 + w |e(x, t, a) - e*(x, t, a)|^2 on latents x that the model
    draws for prompt c and stops on the way; e* is the base, a are anchors far from c. Sections 3.2 to 3.4 of the paper."""

    name = "spm"
    kind = "adapter"
    changes = "low-rank adapters on all layers of transformers"
    needs = "prompts; draws its own latents"
    source = "One-dimensional Adapter to Rule Them All (arXiv 2312.16145); Con6924/SPM"
    patch = SpmPatch
    sandbox: ClassVar = {
        "rank": 4,
        "alpha": 4.0,
        "nearness": "centred",
        "anchors_from": "retain",
        "steps": 8,
        "guidance": 1.5,
        "learning_rate": 3e-3,
        "updates": 250,
        "warmup": 25,
        "batch": 8,
    }

    merged: bool = Field(
        False, description="Put the adapters into the weights, without a gate: plain diffusers can draw it."
    )
    eta: FiniteFloat = Field(1.0, ge=0, le=100, description="guidance_scale of the code's prompt settings.")
    anchor_weight: FiniteFloat = Field(1000.0, ge=0, le=1e9, description="w; la_strength.")
    anchors: int = Field(4, ge=1, le=4096, description="Anchors of each latent.")
    anchors_from: Literal["gaussian", "retain"] = Field(
        "gaussian",
        description="Normal numbers of 0.8 to 1.2 times the length of c's states, which lie far from everything; or prompts to "
        "keep, by chances of 1 - |cosine with c|.",
    )
    anchor_order: Literal["paper", "released"] = Field(
        "paper",
        description="In the code half of the anchors are the empty prompt, by a slip in how they are stacked.",
    )
    steps: int = Field(
        30, ge=2, le=1000, description="Of the latents' drawing; stopped after 1 to steps - 1."
    )
    guidance: FiniteFloat = Field(3.0, ge=1, le=100, description="Of the latents' drawing.")
    learning_rate: FiniteFloat = Field(
        1e-4, gt=0, le=1, description="Of AdamW, which has 8 bits in the code."
    )
    updates: int = Field(3000, ge=1, le=10**7, description="Of the adapters.")
    warmup: int = Field(500, ge=0, le=10**7, description="Updates; then a cosine with three restarts.")
    batch: int = Field(1, ge=1, le=4096, description="Latents of an update; they stop at the same step.")

    def unet_evaluations(self, task: Task) -> int:
        return round(
            self.updates * self.batch * (self.steps / 2 * cost_of_a_step(self.guidance) + self._each)
        )

    @property
    def _each(self) -> int:
        """UNet evaluations of an update's latent, once it is drawn."""
        return 2 + (1 + BACKWARD) + self.anchors * (1 + 1 + BACKWARD)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> Patch | None:
        unet, random = pipeline.unet, task.generator(self.name)
        held = adapters(unet, self)
        with held.trained_on(unet) as trained:
            self._train(pipeline, held, trained, task, meter, random)
        if self.merged:
            with torch.no_grad():
                for name, each in held.items():
                    unet.get_submodule(name).weight += each.weight()
            return None
        empty, *words = texts.states(pipeline, ["", *task.words])
        return self.with_constants({**held.tensors(), "empty": empty, "words": torch.stack(words)})

    def _train(
        self, pipeline: Any, held: Adapters, trained: Any, task: Task, meter: Meter, random: torch.Generator
    ) -> None:
        unet, sampler = pipeline.unet, replace(task.sampler, steps=self.steps)
        sampling = Sampling(pipeline, sampler, self.guidance)
        empty, states = texts.states(pipeline, [""]), texts.states(pipeline, task.unsafe)
        kept = texts.states(pipeline, task.retain or [""])
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate)
        schedule = get_scheduler(
            "cosine_with_restarts",
            optimizer,
            num_warmup_steps=self.warmup,
            num_training_steps=self.updates,
            num_cycles=3,
        )
        for _ in range(self.updates):
            steps = int(torch.randint(1, self.steps, (), generator=random))
            if not meter.affords(self.batch * (steps * sampling.cost + self._each)):
                break
            chosen = states[torch.randint(len(states), (self.batch,), generator=random).to(states.device)]
            latents = sampling.draw(unet, chosen, empty, sampling.noise(self.batch, random), steps)
            time = sampling.times[steps]
            with held.switched_off():
                target = away(unet, latents, time, chosen, empty, self.eta)
            mse_loss(predict(unet, latents, time, chosen), target).backward()
            anchors = self._anchors(chosen, kept, empty, random)
            (self.anchor_weight * stray(unet, held, latents, time, anchors)).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    def _anchors(
        self,
        chosen_BLD: torch.Tensor,
        kept_MLD: torch.Tensor,
        empty_1LD: torch.Tensor,
        random: torch.Generator,
    ) -> torch.Tensor:
        """States of anchors, shape (A B, L, D), each for the latent of its place modulo B."""
        count = self.anchors * len(chosen_BLD)
        concepts = chosen_BLD.repeat(self.anchors, 1, 1)
        if self.anchors_from == "retain":
            cosines = cosine_similarity(concepts.flatten(1)[:, None], kept_MLD.flatten(1)[None], dim=-1)
            far = (1 - cosines.abs()).clamp(min=1e-6).cpu()
            anchors = kept_MLD[torch.multinomial(far, 1, generator=random)[:, 0].to(kept_MLD.device)]
        else:
            anchors = torch.randn(concepts.shape, generator=random).to(concepts)
            lengths = (0.8 + 0.4 * torch.rand(count, generator=random)).to(concepts)
            lengths = lengths * concepts.flatten(1).norm(dim=1) / anchors.flatten(1).norm(dim=1)
            anchors = anchors * lengths[:, None, None]
        if self.anchor_order == "released":
            anchors[: count // 2] = empty_1LD
        return anchors


def stray(
    unet: Any, held: Adapters, latents_BCHW: torch.Tensor, time: torch.Tensor, anchors_ALD: torch.Tensor
) -> torch.Tensor:
    """|e(x, t, a) - e*(x, t, a)|^2, the mean over all numbers."""
    latents = latents_BCHW.repeat(len(anchors_ALD) // len(latents_BCHW), 1, 1, 1)
    with torch.no_grad(), held.switched_off():
        target = predict(unet, latents, time, anchors_ALD)
    return mse_loss(predict(unet, latents, time, anchors_ALD), target)
