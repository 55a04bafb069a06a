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


def single_file(folder: Path, path: Path) -> Path:
    """A pipeline folder's weights in the layout of the original Stable Diffusion checkpoints, one .safetensors."""
    from safetensors.torch import load_file, save_file

    def read(part: str, stem: str = "diffusion_pytorch_model") -> dict[str, torch.Tensor]:
        return load_file(folder / part / f"{stem}.safetensors")

    depth = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"] + 1
    levels = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    text = {name.removeprefix("text_model."): held for name, held in read("text_encoder", "model").items()}
    found = {
        **{f"model.diffusion_model.{_ldm_unet(name, depth)}": held for name, held in read("unet").items()},
        **{f"first_stage_model.{_ldm_vae(name, levels)}": held for name, held in read("vae").items()},
        **{f"cond_stage_model.transformer.text_model.{name}": held for name, held in text.items()},
    }
    save_file({name: held.contiguous() for name, held in found.items()}, path)
    return path


def _ldm_unet(name: str, depth: int) -> str:
    """LDM's name of a UNet's parameter; `depth`: places of a block, its resnets and what follows them."""
    outer = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    outer |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    for ours, theirs in outer.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    side, *parts = name.split(".")
    if side == "mid_block":
        kind, n, *rest = parts
        return _renamed("middle_block." + ("1" if kind == "attentions" else str(2 * int(n))), kind, rest)
    block, kind, n, *rest = parts
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * depth}.0.op.{rest[-1]}"
        place = f"input_blocks.{1 + int(block) * depth + int(n)}"
    else:
        if kind == "upsamplers":
            return f"output_blocks.{int(block) * depth + depth - 1}.2.conv.{rest[-1]}"
        place = f"output_blocks.{int(block) * depth + int(n)}"
    return _renamed(f"{place}.{int(kind == 'attentions')}", kind, rest)


def _renamed(place: str, kind: str, rest: list[str]) -> str:
    names = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    names |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    inner = [names.get(each, each) for each in rest] if kind == "resnets" else rest
    return ".".join([place, *inner])


def _ldm_vae(name: str, levels: int) -> str:
    """LDM's name of a VAE's parameter; `levels`: its resolutions, which LDM's decoder counts from the other end."""
    for ours, theirs in (
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("down_blocks.", "down."),
        ("resnets.", "block."),
    ):
        name = name.replace(ours, theirs)
    for level in range(levels):
        if f"up_blocks.{level}." in name:
            return name.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
    return name


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes a field away."""
    held = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))
