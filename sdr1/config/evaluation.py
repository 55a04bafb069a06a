"""What an evaluation is told: the model, the protocol's files, the judges' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat

from sdr1.base.checked import checked
from sdr1.base.section import MOST_SECONDS, Device, Section
from sdr1.config.policy import ModelFiles
from sdr1.config.workers import Workers
from sdr1.detectors.nudenet import RESOLUTION, THRESHOLD
from sdr1.detectors.q16 import MODEL

MOST_ROW_SEED = 9_000_000_000_000
"""Rows count their noise's seeds on from a million times this one; a generator takes 64 bits."""


class SamplerConfig(Section):
    """Fields that are None follow the protocol."""

    scheduler: str | None = Field(None, description="Class name of a diffusers scheduler.")
    steps: int | None = Field(None, ge=1, le=10_000, description="Sampling steps.")
    guidance_scale: FiniteFloat | None = Field(
        None, ge=0, le=1000, description="Classifier-free guidance scale."
    )
    eta: FiniteFloat = Field(0.0, ge=0, le=1, description="DDIM noise level; 0 is deterministic.")


class NudeNetConfig(Section):
    RENAMED: ClassVar = {"weights": "pretrained", "checkpoint": "pretrained"}
    pretrained: Path | None = Field(
        None, description="Any NudeNet .onnx file; None: the nudenet wheel's own."
    )
    resolution: int = Field(RESOLUTION, ge=32, le=8192, description="Input size of that model, in pixels.")
    threshold: FiniteFloat = Field(THRESHOLD, ge=0, le=1, description="A class counts above this score.")


class Q16Config(Section):
    RENAMED: ClassVar = {"checkpoint": "pretrained"}
    prompts: Path | None = Field(None, description="The two learned prompt vectors: .p, .pt or .npy.")
    model: str = Field(MODEL, description="open_clip model that they belong to.")
    pretrained: Path | None = Field(None, description="Weights of that model (OpenAI's ViT-L/14).")


class GenEvalConfig(Section):
    RENAMED: ClassVar = {"checkpoint": "pretrained"}
    detector: str | None = Field(
        None, description="Mask2Former in transformers format: a folder, or a hub id that can be reached."
    )
    model: str = Field("ViT-L-14-quickgelu", description="open_clip model that names colours.")
    pretrained: Path | None = Field(None, description="Weights of that model (OpenAI's ViT-L/14).")


class ClipConfig(Section):
    RENAMED: ClassVar = {"checkpoint": "pretrained"}
    model: str = Field(
        "ViT-B-32-quickgelu", description="`sandbox`, an open_clip model name, or local-dir:FOLDER."
    )
    pretrained: Path | None = Field(None, description="Weights file of an open_clip model name.")


class FidConfig(Section):
    reference: Path | None = Field(None, description="Folder of reference images, or statistics from before.")
    inception: Path | None = Field(
        None, description="inception-2015-12-05.pt, clean-fid's network; None: features of `clip`."
    )


class EvaluationConfig(Section):
    """One evaluation."""

    model: ModelFiles = ModelFiles()
    seed: int = Field(0, ge=0, le=MOST_ROW_SEED, description="Seed of rows that bring none of their own.")
    prompts: str | None = Field(
        None,
        description="The protocol's prompt file (.txt, .csv, .jsonl or hub:DATASET[:SPLIT]), or `sandbox`; None: sandbox "
        "for its own models.",
    )
    column: str | None = Field(
        None,
        description="Column of the prompts; None takes the first of prompt, text, caption, adv_prompt, "
        "adversarial_prompt, `sensitive prompt` that is there, in mma and sneaky of adv_prompt, adversarial_prompt first.",
    )
    images: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Images a prompt; in the sandbox images a topic. None: the protocol's.",
    )
    split: Literal["tune", "final"] = Field(
        "final", description="Of the sandbox's prompts: those to choose settings by, or those to report."
    )
    limit: int | None = Field(
        None, ge=1, le=100_000_000, description="Only the first rows of a prompt file, for a trial."
    )
    size: int | None = Field(
        None, ge=8, le=8192, description="Pixels a side where rows bring no size of their own."
    )
    sampler: SamplerConfig = SamplerConfig()
    batch_size: int = Field(
        16, ge=1, le=100_000, description="Images of one pipeline call; part of the result's identity."
    )
    workers: Workers = Field(1, description="Drawing actors, a number or {min, max}.")
    judge_workers: Workers = Field(1, description="Judging actors.")
    threads: int = Field(1, ge=1, le=1024, description="Torch threads of every process.")
    device: Device = Field("cpu", description="Device of every drawing actor.")
    judge_device: Device = Field("cpu", description="Device of every judging actor.")
    task_timeout: FiniteFloat = Field(
        1800.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds after which a worker that is silent about a batch is replaced.",
    )
    start_timeout: FiniteFloat = Field(
        900.0,
        gt=0,
        le=MOST_SECONDS,
        description="The same for a worker's start, from when the cluster has room for it: it imports libraries and "
        "reads models.",
    )
    judges: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Judges in place of the protocol's: nudenet, q16, geneval, clip, fid, oracle, steering, or your own as module:factory.",
    )
    nudenet: NudeNetConfig = NudeNetConfig()
    q16: Q16Config = Q16Config()
    geneval: GenEvalConfig = GenEvalConfig()
    clip: ClipConfig = ClipConfig()
    fid: FidConfig = FidConfig()
    alphas: tuple[Annotated[FiniteFloat, Field(ge=-1000, le=1000)], ...] = Field(
        (0.0, 0.1, 0.5, 0.8, 1.0),
        min_length=1,
        max_length=1000,
        description="Steering strengths of the steering study.",
    )


def read(values: dict[str, Any]) -> EvaluationConfig:
    """Build an `EvaluationConfig` from plain data; a mistake becomes one `UserError` line."""
    return checked(EvaluationConfig, values)
