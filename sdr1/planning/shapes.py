"""The modules of a config as fake tensors: their shapes are real, their weights are never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdr1.base.errors import Unreachable, UserError
from sdr1.base.plain_data import read_json
from sdr1.base.section import SANDBOX
from sdr1.config.policy import PolicyConfig
from sdr1.config.training import Config
from sdr1.models import lora, pipeline_files
from sdr1.models.embedder import read_folder

SD_1: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "text_encoder": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
    },
}
"""Stable Diffusion 1.x, for a hub id whose files cannot be reached."""


class FakeModules(NamedTuple):
    """Fake modules of one run and the mode that they live in."""

    mode: FakeTensorMode
    unet: Any
    vae: Any
    text_encoder: Any
    encoder: Any
    """The reward's open_clip model."""
    encoder_size: tuple[int, int]
    latent: tuple[int, int, int]
    """Channels, height, width of the latents."""
    pixels: tuple[int, int]
    assumed: str | None
    """What had to be assumed."""


def fake_modules(config: Config) -> FakeModules:
    """Build the modules that `config` names.

    Raises:
        UserError: a file of the policy, or `reward.model`, is wrong; of the reward's weights nothing is asked.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    parts, assumed = _part_configs(config.policy)
    clip, size = _encoder_config(config)
    mode = FakeTensorMode()
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(parts["unet"])
    unet.requires_grad_(config.policy.trainable == "full")
    if config.policy.trainable == "lora":
        lora.add(unet, config.policy.lora, 0)
    with mode:
        _fake(unet)
        vae = AutoencoderKL.from_config(parts["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**parts["text_encoder"]))
        encoder = clip()
        for part in (vae, text_encoder, encoder):
            part.requires_grad_(False)
        for part in (unet, vae, text_encoder, encoder):
            part.eval()
        if config.policy.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = config.policy.size // factor if config.policy.size else unet.config.sample_size
    latent = (unet.config.in_channels, side, side)
    return FakeModules(
        mode, unet, vae, text_encoder, encoder, size, latent, (side * factor, side * factor), assumed
    )


def _fake(module: torch.nn.Module) -> None:
    """Meta tensors, which adapters can be added to, become fake ones, which say what a CPU's kernels take."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                like = torch.empty(parameter.shape, dtype=parameter.dtype)
                each._parameters[name] = torch.nn.Parameter(like, requires_grad=parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _part_configs(policy: PolicyConfig) -> tuple[dict[str, dict[str, Any]], str | None]:
    try:
        folder = pipeline_files.check(policy)
    except Unreachable:
        return SD_1, f"{policy.model} cannot be read here: the shapes are Stable Diffusion 1.x's"
    parts = {part: read_json(folder / part / "config.json") for part in SD_1}
    return {
        part: {key: value for key, value in values.items() if not key.startswith("_")}
        for part, values in parts.items()
    }, None


def _encoder_config(config: Config) -> tuple[Any, tuple[int, int]]:
    import open_clip

    from sdr1.models import hps

    model = config.reward.model
    if model == SANDBOX:
        from sdr1.sandbox import CLIP

        model = f"local-dir:{CLIP}"
    if model.startswith("local-dir:"):
        options, _ = read_folder(Path(model.removeprefix("local-dir:")), model, "reward")
    else:
        name = hps.ARCHITECTURE if model in hps.MODELS else model
        options = open_clip.get_model_config(name)
        if options is None:
            raise UserError(f"reward.model: {model!r}: its shape is not known here; give an open_clip name")
    options = dict(options)
    kind = open_clip.CustomTextCLIP if options.pop("custom_text", False) else open_clip.CLIP
    size = options["vision_cfg"].get("image_size", 224)
    return lambda: kind(**options), (size, size) if isinstance(size, int) else tuple(size)


def dtype(policy: PolicyConfig) -> torch.dtype:
    """What the UNet computes in."""
    return getattr(torch, policy.precision)
