"""Options of the objective on the forward process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from sdr1.base.section import Section, refuse_set

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class ForwardConfig(Section):
    form: Literal["clipped", "bounded"] = Field(
        "clipped",
        description="How the advantage A moves the denoising error. `clipped`: minus the weighted error is the log-prob of "
        "GRPO's clipped ratio (advantage-weighted matching). `bounded`: towards the noise where A > 0, towards its mirror "
        "image at the old policy where A < 0 (DiffusionNFT). The first update after a rollout is the same in both.",
    )
    clip_range: FiniteFloat = Field(
        0.01,
        ge=1e-9,
        le=1,
        description="c of the ratio [1-c, 1+c] of `form: clipped`; errors are means over dimensions.",
    )
    strength: FiniteFloat = Field(
        1.0,
        ge=1e-3,
        le=1e3,
        description="b of `form: bounded`: how much of a prediction's change is mirrored.",
    )
    weight: Literal["uniform", "inverse_signal", "capped_snr"] = Field(
        "inverse_signal",
        description="Weight of the error in epsilon over timesteps: 1; 1 / abar_t, which leans on noisy steps; or "
        "min(SNR, snr_cap) / SNR, which spares the least noisy ones.",
    )
    snr_cap: FiniteFloat = Field(5.0, gt=0, le=1e6, description="Of `weight: capped_snr`.")
    timesteps: int = Field(
        4,
        ge=1,
        le=1000,
        description="Trained timesteps of an image, one drawn of as many equal parts of `between`.",
    )
    between: tuple[Share, Share] = Field(
        (0.02, 0.98), description="Trained timesteps, as shares of the schedule: 0 is clean, 1 is noise."
    )
    noise: Literal["group", "sample"] = Field(
        "group",
        description="Noise that a latent is noised with again: shared by the samples of a group, or each its own.",
    )

    old_weight: FiniteFloat = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the weighted squared distance to what the weights that drew predict.",
    )

    @model_validator(mode="after")
    def _nothing_of_another_choice(self) -> ForwardConfig:
        for choice, value, field in (
            ("form", "clipped", "clip_range"),
            ("form", "bounded", "strength"),
            ("weight", "capped_snr", "snr_cap"),
        ):
            if getattr(self, choice) != value:
                why = f"belongs to learner.forward.{choice}={value}; leave it out, or choose that"
                refuse_set(self, (field,), "learner.forward.", why)
        return self

    @model_validator(mode="after")
    def _some_timesteps(self) -> ForwardConfig:
        low, high = self.between
        if low >= high:
            raise ValueError(f"between [{low:g}, {high:g}] must rise; e.g. [0.02, 0.98]")
        return self
