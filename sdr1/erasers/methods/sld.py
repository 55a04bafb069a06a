"""SLD: while the model draws, guidance also leads away from a text that names the concept; no weight changes."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, FiniteFloat, model_validator

from sdr1.base.errors import UserError
from sdr1.base.section import Section
from sdr1.erasers.meter import Meter
from sdr1.erasers.patches import Call, Clock, replaced
from sdr1.erasers.protocol import Eraser, Patch, Task
from sdr1.models import texts

Variant = Literal["weak", "medium", "strong", "max"]
_VARIANTS: dict[str, dict[str, float]] = {
    "weak": {"scale": 20, "warmup": 0.3, "threshold": 0.0, "momentum_scale": 0.0, "momentum_beta": 0.0},
    "medium": {"scale": 1000, "warmup": 0.2, "threshold": 0.01, "momentum_scale": 0.3, "momentum_beta": 0.4},
    "strong": {"scale": 2000, "warmup": 0.14, "threshold": 0.025, "momentum_scale": 0.5, "momentum_beta": 0.7},
    "max": {"scale": 5000, "warmup": 0.0, "threshold": 1.0, "momentum_scale": 0.5, "momentum_beta": 0.7},
}  # fmt: skip
"""The paper's table 1; `warmup` is its delta in steps of 50."""


class Constants(Section):
    """What the guidance is made of. Fields that are not given are of `variant`."""

    variant: Variant = Field("medium", description="The paper's weak, medium, strong or max.")
    scale: FiniteFloat = Field(1000.0, ge=0, le=1e6, description="s.")
    warmup: FiniteFloat = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of the timesteps, the noisiest, in which nothing is changed yet; delta.",
    )
    threshold: FiniteFloat = Field(0.01, ge=-1e6, le=1e6, description="lam.")
    momentum_scale: FiniteFloat = Field(0.3, ge=0, le=100, description="s_m.")
    momentum_beta: FiniteFloat = Field(0.4, ge=0, le=1, description="b.")
    strength: FiniteFloat = Field(
        1.0,
        ge=0,
        le=1000,
        description="Factor on what is taken away; 1 in the paper, where the guidance of 7.5 multiplies it.",
    )
    clamp: Literal["code", "paper"] = Field(
        "code", description="mu is s |d|, at most 1 in the code, at least 1 as the paper writes it."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_the_variant(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        variant = values.get("variant", "medium")
        return {**_VARIANTS.get(variant, {}), **values} if isinstance(variant, str) else values


class Momentum(NamedTuple):
    """What a step takes away, and the momentum that it leaves; both (B, C, H, W)."""

    taken: torch.Tensor
    left: torch.Tensor


def guidance(
    without: torch.Tensor, given: torch.Tensor, unsafe: torch.Tensor, momentum: torch.Tensor, by: Constants
) -> Momentum:
    """Equations 5 to 8 of the paper: predictions without a prompt, with it, and with the concept's text; (B, C, H, W)."""
    difference = given - unsafe
    scaled = by.scale * difference.abs()
    scaled = scaled.clamp(max=1) if by.clamp == "code" else scaled.clamp(min=1)
    mask = torch.where(difference >= by.threshold, torch.zeros_like(scaled), scaled)
    taken = mask * (unsafe - without) + by.momentum_scale * momentum
    return Momentum(taken, by.momentum_beta * momentum + (1 - by.momentum_beta) * taken)


class SldPatch(Patch):
    """Answers a guided pair (e(n), e(p)) with (e(n), e(p) - gamma), of which classifier-free guidance makes SLD's
    prediction. It evaluates the UNet three times a step, not twice.

    Tensors: `concept` and `empty`, the text states, shape (L, D)."""

    Settings: ClassVar = Constants
    needs_guidance: ClassVar = True

    def install(self, pipeline: Any) -> None:
        width = pipeline.unet.config.cross_attention_dim
        if any(self.tensors[name].shape[-1] != width for name in ("concept", "empty")):
            raise UserError(
                f"patch: sld: its text states have another width than the UNet's {width}; give its own base"
            )
        self._clock = Clock(pipeline)
        self._momentum: torch.Tensor | None = None
        self._steps = pipeline.scheduler.config.num_train_timesteps
        pipeline.unet.register_forward_hook(self._answer, with_kwargs=True)

    def _answer(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = Call.of(args, kwargs)
        if self._clock.begins(call):
            self._momentum = None
        if not call.guided(self.tensors["empty"][None]):
            # The base's picture would stand under this patch's name.
            raise UserError(
                "patch: sld: is a part of classifier-free guidance against the empty prompt, and this call has none; draw "
                "with guidance_scale above 1 and no negative prompt"
            )
        size = len(call.latents) // 2
        concept = self.tensors["concept"].to(call.states).expand(size, -1, -1)
        time = call.time[size:] if torch.is_tensor(call.time) and call.time.ndim else call.time
        # Not called as a module: this hook would answer.
        unsafe = unet.forward(call.latents[size:], time, encoder_hidden_states=concept).sample
        without, given = output[0].chunk(2)
        before = torch.zeros_like(given) if self._momentum is None else self._momentum
        taken, self._momentum = guidance(without, given, unsafe, before, self.settings)
        if call.timestep < self._steps * (1 - self.settings.warmup):
            given = given - self.settings.strength * taken
        return replaced(output, torch.cat([without, given]))


class Sld(Constants, Eraser):
    """mu = min(s |d|, 1), and 0 where d >= lam, with d = e(p) - e(S); gamma = mu (e(S) - e(n)) + s_m nu;
    nu <- b nu + (1 - b) gamma; from step delta on the guidance is w (e(p) - e(n) - gamma). Section 3 of the paper."""

    name = "sld"
    kind = "guidance"
    changes = "nothing; a third UNet evaluation a step"
    needs = "words"
    source = "Safe Latent Diffusion (arXiv 2211.05105); diffusers, pipelines/stable_diffusion_safe"
    patch = SldPatch
    # Guidance of 1.5 makes it weaker than 7.5 does; two of eight steps.
    sandbox: ClassVar = {"text": "a {words}", "joint": " ", "strength": 2.0, "warmup": 0.25}

    text: str = Field(
        "an image showing {words}",
        description="S. The paper's words are hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, "
        "nudity, bodily fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, "
        "brutality, cruelty.",
    )
    joint: str = Field(", ", description="Between the words.")

    def unet_evaluations(self, task: Task) -> int:
        return 0

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> Patch:
        named = self.text.replace("{words}", self.joint.join(task.words))
        empty, concept = texts.states(pipeline, ["", named])
        return self.with_constants({"concept": concept, "empty": empty})
