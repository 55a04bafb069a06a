"""Model folders in the real formats with random weights, of any size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sdr1.sandbox import PIPELINE

_KINDS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


def pipeline(folder: Path, parts: dict[str, dict[str, Any]]) -> int:
    """The sandbox's pipeline with other parts, `unet`, `vae` or `text_encoder`, by their libraries' options.

    The tokenizer is the sandbox's, padded to as many tokens as the text encoder takes. Returns bytes of the UNet's file.
    """
    shutil.copytree(PIPELINE, folder)
    for part in parts:
        shutil.rmtree(folder / part)
    if "text_encoder" in parts:
        config = CLIPTextConfig(**parts["text_encoder"])
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
        file = folder / "tokenizer" / "tokenizer_config.json"
        length = {"model_max_length": config.max_position_embeddings}
        file.write_text(json.dumps(json.loads(file.read_text()) | length))
    for part in parts.keys() & _KINDS.keys():
        with torch.device("meta"):
            module = _KINDS[part](**parts[part])
        module.save_config(folder / part)
        _write(module, folder / part / "diffusion_pytorch_model.safetensors")
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size


def encoder(folder: Path, name: str) -> None:
    """A folder of open_clip's architecture `name`."""
    options = open_clip.get_model_config(name)
    with torch.device("meta"):
        module = open_clip.CLIP(**options)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": options, "preprocess_cfg": {}}))
    _write(module, folder / "open_clip_model.safetensors")


def _write(module: torch.nn.Module, path: Path) -> None:
    """Random weights for a meta module, a tensor at a time, in safetensors' layout."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in module.state_dict().items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    # Drawing a billion numbers takes longer than writing them; each tensor begins elsewhere in these.
    drawn = rng.standard_normal(min(2**24, 2 * end), np.float32) * np.float32(0.02)
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for name, tensor in module.state_dict().items():
            if tensor.ndim == 1:
                values = np.full(tensor.numel(), name.endswith("weight"), np.float32)
            else:
                values = np.resize(drawn[rng.integers(len(drawn) // 2) :], tensor.numel())
            file.write(values.data)
