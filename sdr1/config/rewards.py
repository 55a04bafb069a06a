"""The reward: its main term, the kinds of further terms and their options, and where they are computed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, FiniteFloat, field_validator, model_validator

from sdr1.base.factories import PATTERN
from sdr1.base.section import SANDBOX, Device, Section
from sdr1.config.workers import Workers
from sdr1.detectors.nudenet import CLASSES, EXPOSED, RESOLUTION, THRESHOLD
from sdr1.detectors.q16 import MODEL


class TermConfig(Section):
    """Options that all kinds of terms share; a kind adds its own, and says how it is built."""

    weight: FiniteFloat = Field(
        1.0, ge=-1e6, le=1e6, description="Factor of this term in the sum of all terms."
    )
    normalise: bool = Field(
        False,
        description="Centre the term in its group and divide by its standard deviation before it is weighted, so that "
        "no term drowns another by its scale.",
    )


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

    RENAMED: ClassVar = {"checkpoint": "pretrained"}
    kind: Literal["steered", "plain", "negative"] = Field(
        "steered",
        description="`steered`: a steered prompt's target is moved along v; `plain`: every target is z; `negative`: "
        "a steered prompt's reward is -<image, z>, the paper's ablation.",
    )
    model: str | None = Field(
        None, description="As reward.model; None is the main term's model, loaded once for both."
    )
    pretrained: Path | None = Field(
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
    steer: Literal["unsafe", "score", "all"] = Field(
        "unsafe",
        description="Steered prompts: labelled `unsafe`, by `score`, which is negative for them, or `all`.",
    )
    anchors: AnchorsConfig | Literal["sandbox"] = Field(
        AnchorsConfig(), description="Anchor phrases of the safety direction."
    )

    @field_validator("steer", mode="before")
    @classmethod
    def _scored(cls, steer: Any) -> Any:
        if steer == "negative":
            raise ValueError("'negative': the value is 'score' now; `negative` is a kind of term")
        return steer


class NudenetTerm(TermConfig):
    RENAMED: ClassVar = {"checkpoint": "pretrained"}
    kind: Literal["nudenet"]
    threshold: FiniteFloat = Field(THRESHOLD, gt=0, lt=1, description="A detection counts above this score.")
    pretrained: Path | None = Field(
        None, description="Another detector file (.onnx) than the one that the nudenet package ships."
    )
    resolution: int = Field(RESOLUTION, ge=32, le=8192, description="Input size of that model, in pixels.")
    classes: tuple[str, ...] = Field(
        EXPOSED,
        min_length=1,
        description="nudenet's classes that count; the default is all the exposed ones: the paper's table and the anus.",
    )

    @field_validator("classes")
    @classmethod
    def _are_nudenets(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in classes if name not in CLASSES]:
            raise ValueError(f"{unknown[0]!r}: NudeNet has no such class; use some of {', '.join(CLASSES)}")
        return classes


class Q16Term(TermConfig):
    RENAMED: ClassVar = {"checkpoint": "pretrained"}
    kind: Literal["q16"]
    prompts: Path = Field(
        description="The two learned prompt vectors, row 0 benign and row 1 inappropriate: .npy, or the published "
        "pickle (.p, .pt), which is read without executing anything."
    )
    model: str = Field(MODEL, description="open_clip model whose space the vectors live in.")
    pretrained: Path | None = Field(Path("openai"), description="Its weights, as reward.pretrained.")


class HttpTerm(TermConfig):
    """POST {"prompt": str, "images": [PNG in base64]} is answered by {"unsafe": [a number in 0..1 each]}."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://", description="Where the judge answers.")
    timeout: FiniteFloat = Field(
        30.0, gt=0, le=86_400, description="Seconds of one request and its answer, all in all."
    )
    retries: int = Field(
        3, ge=0, le=1000, description="Further tries after a request that failed, with growing pauses."
    )
    batch: int = Field(16, ge=1, le=100_000, description="Images of one request.")


class ImportTerm(TermConfig):
    """`factory(device=..., **options)` returns a function (images uint8 (N, H, W, 3) RGB, prompt) -> (N,) float32."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    kind: Literal["import"]
    factory: str = Field(
        alias="import",
        pattern=PATTERN,
        description="`module:factory`, importable wherever a reward worker runs.",
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the factory.")


AnyTerm = Annotated[
    EmbeddingTerm  # steered, plain, negative
    | NudenetTerm
    | Q16Term
    | HttpTerm
    | ImportTerm,
    Field(discriminator="kind"),
]


class RewardConfig(EmbeddingTerm):
    """The main term, further terms, and where they are computed."""

    model: str = Field(
        SANDBOX,
        description="`sandbox`, `hps-v2.1`, `hps-v2.0`, an open_clip model name, `hf-hub:ID` or `local-dir:FOLDER`.",
    )
    terms: dict[str, AnyTerm] = Field(
        {},
        description="Further terms by name; the reward is the weighted sum of the main term and these. Kinds: "
        "steered, plain, negative, nudenet, q16, http, or {import: 'module:factory'}.",
    )
    batch: int = Field(
        64, ge=1, le=100_000, description="Images that the encoder takes in one forward pass, at most."
    )
    monitor: Literal["oracle"] | None = Field(
        None,
        description="Judge that reports the unsafe rate of rollouts, never trained on; `oracle` reads the sandbox.",
    )
    workers: Workers = Field(1, description="Reward actors: a number, or {min, max}.")
    device: Device = Field("cpu", description="Device of every reward actor.")

    @field_validator("terms", mode="before")
    @classmethod
    def _import_is_a_kind(cls, terms: Any) -> Any:
        if not isinstance(terms, dict):
            return terms
        return {
            name: {"kind": "import", **term} if isinstance(term, dict) and "import" in term else term
            for name, term in terms.items()
        }

    @field_validator("terms")
    @classmethod
    def _names_are_metrics(cls, terms: dict[str, Any]) -> dict[str, Any]:
        for name in terms:
            if name == "main" or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"term name {name!r}: use small letters, digits and _, and not `main`")
        return terms
