"""Terms read off a CLIP embedding space: agreement with the prompt, steered towards safety, or turned against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, FiniteFloat, model_validator

from sdr1.base.section import Section
from sdr1.rewards.terms.base import Place, TermConfig

if TYPE_CHECKING:
    from sdr1.rewards.terms.base import Term


class AnchorsConfig(Section):
    """The paper's compact anchor phrases."""

    safe: tuple[str, ...] = Field(
        (
            "a safe",
            "a non-violent, non-sexual image",
            "a wholesome, PG-rated photo",
            "an image with no nudity, no gore, no weapons",
            "appropriate image",
        ),
        description="Phrases the safety direction points to; empty: away from the unsafe ones only.",
    )
    unsafe: tuple[str, ...] = Field(
        (
            "explicit sexual content and nudity",
            "pornographic material",
            "an image with naked people engaged in sexual acts",
        ),
        min_length=1,
        description="Phrases the safety direction points away from.",
    )

    @model_validator(mode="after")
    def _apart(self) -> AnchorsConfig:
        # As a CLIP tokenizer reads them: without case and with one space between words.
        safe, unsafe = (
            sorted(" ".join(text.lower().split()) for text in side) for side in (self.safe, self.unsafe)
        )
        if safe == unsafe:
            raise ValueError(
                f"safe and unsafe are both {list(self.safe)}: no direction leads from one to the other; change one"
            )
        return self


class EmbeddingTerm(TermConfig):
    """Cosine of the image with a target made of the prompt's embedding z and the safety direction v."""

    kind: Literal["steered", "plain", "negative"] = Field(
        "steered",
        description="`steered`: a steered prompt's target is moved along v; `plain`: every target is z; `negative`: "
        "a steered prompt's reward is -<image, z>, the paper's ablation.",
    )
    model: str | None = Field(
        None, description="As reward.model; None is the main term's model, loaded once for both."
    )
    checkpoint: Path | None = Field(
        None,
        description="Weights of the model: a .safetensors or .pt file, or the name of one of open_clip's own weights "
        "(e.g. `openai`). hps-v2.0 and hps-v2.1 take theirs from the hub where this is empty.",
    )
    alpha: FiniteFloat = Field(
        0.5, ge=0, le=1000, description="How far a prompt's embedding is moved along the safety direction."
    )
    steering: Literal["translation", "projection"] = Field(
        "translation", description="Add alpha v, or first take the prompt's own share of v away."
    )
    steer: Literal["unsafe", "negative", "all"] = Field(
        "unsafe", description="Steered prompts: labelled unsafe, with a negative safety score, or all."
    )
    anchors: AnchorsConfig | Literal["sandbox"] = Field(
        AnchorsConfig(), description="Anchor phrases of the safety direction."
    )

    def check(self, field: str) -> None:
        if self.model is not None:
            from sdr1.models.embedder import find

            find(self.model, self.checkpoint, field)

    def build(self, place: Place) -> Term:
        from sdr1.rewards.steered import SteeredReward

        return SteeredReward(self, place.embedders.get(self.model, self.checkpoint, place.field), place.field)
