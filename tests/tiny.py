"""Tiny models with random weights in the real formats, made on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from sdr1.sandbox import PIPELINE

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""An open_clip architecture of the kind of ViT-H-14, a thousandth of its size."""


def pipeline(folder: Path, *, prediction_type: str = "epsilon") -> Path:
    """A StableDiffusionPipeline folder with random UNet weights, the sandbox's other parts."""
    from diffusers import UNet2DConditionModel

    shutil.copytree(PIPELINE, folder)
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type=prediction_type)
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(
        UNet2DConditionModel.load_config(folder, subfolder="unet")
    ).save_pretrained(folder / "unet")
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes a field away."""
    held = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))
