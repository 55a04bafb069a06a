"""What can be known of a policy's files before any weights are loaded: parts, shapes, prediction type."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError, reason
from sdr1.base.plain_data import shown
from sdr1.base.section import SANDBOX
from sdr1.config.policy import PolicyConfig
from sdr1.models import single_file, weight_files
from sdr1.models.pipeline_configs import (
    WEIGHTS,
    Parts,
    build,
    built,
    fetch,
    object_in,
    place,
    read,
    renamed,
    shapes_of,
)

_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),
}
"""The parts of a pipeline and their classes; of schedulers any that knows betas."""
_NOT_LOADED = ("embeddings.position_ids", "text_projection.weight")
"""Tensors that a text encoder's file may hold and its model does without."""


def locate(config: PolicyConfig) -> Path | None:
    """The folder or file that `policy.model` names; None for a hub id.

    Raises:
        UserError: it looks like a path and is not there.
    """
    if config.model == SANDBOX:
        from sdr1.sandbox import PIPELINE

        return PIPELINE
    path = Path(config.model)
    # An empty name would be the working directory.
    if config.model and path.exists():
        # Absolute: the libraries ask the hub for a relative folder that lacks a part.
        return path.absolute()
    first, slash, rest = config.model.partition("/")
    if first in ("", ".", "..", "~") or not slash or "/" in rest or Path(first).is_dir():
        raise UserError(
            f"{place(config)}: no such file or folder; give `sandbox`, a diffusers pipeline folder, a .safetensors "
            "file or a hub id"
        )
    return None


def check(config: PolicyConfig) -> Path:
    """As `examine`; then try the parts together, without a weight in memory.

    Raises:
        Unreachable: as `examine`.
        UserError: as `examine`, or the parts do not work with one another, with `policy.size` or `policy.steps`.
    """
    folder = examine(config)
    parts = build(folder, config)
    most = parts.scheduler.config.num_train_timesteps
    try:
        parts.scheduler.set_timesteps(config.steps)
        fits = config.steps <= most and int(max(parts.scheduler.timesteps)) < most
    except Exception:
        fits = False
    if not fits:
        raise UserError(
            f"policy.steps: {config.steps}: the model was trained on {most} timesteps and its scheduler cannot space so "
            f"many; use at most {most // 2}"
        )
    try:
        _try_out(*parts[:3], parts.tokenizer.model_max_length, _pixels(parts, config))
    except Exception as error:
        size = f", at policy.size {config.size}" if config.size else ""
        raise UserError(
            f"{place(config)}: its parts do not work together{size}: {reason(error)}; take all of them from one model"
        ) from error
    return folder


def unet(config: PolicyConfig) -> Any:
    """A UNet on the meta device, as its config describes it."""
    return copy.deepcopy(build(configs(config), config).unet)


def tokenizer(config: PolicyConfig) -> Any:
    """The pipeline's tokenizer."""
    return build(configs(config), config).tokenizer


def scheduler(config: PolicyConfig) -> Any:
    """A DDIM scheduler of the pipeline's own config."""
    return build(configs(config), config).scheduler


def pixels(config: PolicyConfig) -> int:
    """Height and width of the policy's images, by its configs."""
    return _pixels(build(configs(config), config), config)


def _pixels(parts: Parts, config: PolicyConfig) -> int:
    if config.size is not None:
        return config.size
    return parts.unet.config.sample_size * 2 ** (len(parts.vae.config.block_out_channels) - 1)


@functools.lru_cache(maxsize=8)
def _try_out(unet: Any, vae: Any, text_encoder: Any, tokens: int, size: int) -> None:
    import torch

    side = size // 2 ** (len(vae.config.block_out_channels) - 1)
    with torch.no_grad(), torch.device("meta"):
        latents = torch.zeros(1, unet.config.in_channels, side, side)
        states = text_encoder(torch.zeros(1, tokens, dtype=torch.long))[0]
        made = unet(latents, torch.zeros(1, dtype=torch.long), encoder_hidden_states=states).sample
        image = vae.decode(made).sample
    if made.shape != latents.shape or image.shape != (1, 3, size, size):
        raise ValueError(
            f"latents {tuple(latents.shape)} become {tuple(made.shape)} and {tuple(image.shape)}"
        )


def configs(config: PolicyConfig) -> Path:
    """The folder with the pipeline's configs, tokenizer and scheduler.

    Raises:
        UserError: they cannot be had, or `policy.config` is given for a pipeline that brings its own.
    """
    path = locate(config)
    if path is not None and path.is_file():
        return single_file.configs(path, config)
    if config.config is not None:
        raise UserError(
            f"policy.config: {config.config!r}: {config.model} brings its own configs; leave it out"
        )
    if path is not None:
        return path
    at = f" at revision {config.revision!r}" if config.revision else ""
    return fetch(f"{place(config)}{at}", config.model, config.revision)


def examine(config: PolicyConfig) -> Path:
    """The folder with the pipeline's configs, tokenizer and scheduler, once they are found to be good.

    Of a hub id only the configs are looked at; they are fetched unless cached.

    Raises:
        Unreachable: the configs are on the hub, out of reach.
        UserError: for every mistake that configs and the headers of weight files show.
    """
    path, folder = locate(config), configs(config)
    index = read(folder / "model_index.json", config, "no diffusers pipeline")
    _check_parts(index, folder, config)
    parts = build(folder, config)
    _check_shapes(parts, config)
    if path is not None and path.is_dir():
        for part in WEIGHTS:
            if part != "unet" or config.unet is None:
                _check_weights(folder / part, WEIGHTS[part], getattr(parts, part), config)
    elif path is not None:
        single_file.check(path, parts, config)
    if config.unet is not None:
        check_unet_file(config.unet, dict(parts.unet.config))
    return folder


def check_unet_file(path: Path, base: dict[str, Any]) -> None:
    """Raise UserError unless `policy.unet` holds, by its header, a UNet of the base's shape."""
    where = f"policy.unet: {str(path)!r}"
    file = path
    if path.is_dir():
        own = path / "config.json"
        if not own.is_file():
            raise UserError(
                f"{where}: no config.json there; give a diffusers UNet folder or a .safetensors file"
            )
        held = object_in(own, where)
        if held.get("cross_attention_dim") != base.get("cross_attention_dim"):
            raise UserError(
                f"{where}: cross_attention_dim {held.get('cross_attention_dim')}, the base's text encoder needs "
                f"{base.get('cross_attention_dim')}; give a UNet of the same family"
            )
        base, file = held, path / "diffusion_pytorch_model.safetensors"
    found = weight_files.shapes(file, "policy.unet")
    unet = built("unet", json.dumps(base, sort_keys=True, default=str), where)
    weight_files.require_fit(found, shapes_of(unet), where, "this UNet")


def _check_parts(index: dict[str, Any], folder: Path, config: PolicyConfig) -> None:
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(
            f"{place(config)}: a {kind}; only Stable Diffusion 1.x and 2.x text-to-image pipelines "
            "(StableDiffusionPipeline) can be trained: give one of these"
        )
    for part, classes in _CLASSES.items():
        named = index.get(part)
        if not isinstance(named, list) or len(named) != 2 or None in named or not (folder / part).is_dir():
            raise UserError(
                f"{place(config)}: the pipeline has no {part}; copy {part}/ from the model it was made from, and its "
                "entry in model_index.json"
            )
        known = _knows_betas(named[1]) if part == "scheduler" else named[1] in classes
        if not known or named[0] not in ("diffusers", "transformers"):
            raise UserError(
                f"{place(config)}: model_index.json: {part} is {shown(named)}, which belongs to another kind of model; "
                f"Stable Diffusion 1.x and 2.x have {' or '.join(classes) or 'e.g. DDIMScheduler'}"
            )


def _knows_betas(name: Any) -> bool:
    import diffusers

    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return isinstance(kind, type) and "beta_start" in inspect.signature(kind).parameters


def _check_shapes(parts: Parts, config: PolicyConfig) -> None:
    unet, vae = parts.unet.config, parts.vae.config
    width = parts.text_encoder.config.hidden_size
    if unet.cross_attention_dim != width:
        raise UserError(
            f"{place(config)}: the UNet reads text states of {unet.cross_attention_dim}, the text encoder gives "
            f"{width}: parts of different models; take unet/ and text_encoder/ from one"
        )
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise UserError(
            f"{place(config)}: the UNet takes {unet.in_channels} channels and gives {unet.out_channels}, "
            f"the VAE has {vae.latent_channels}: an inpainting or image-to-image model; give a text-to-image one"
        )
    prediction = parts.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{place(config)}: scheduler prediction_type {prediction!r}: use epsilon, v_prediction or sample"
        )
    scale = vae.scaling_factor
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise UserError(
            f"{place(config)}: vae/config.json: scaling_factor {scale!r}: latents are divided by it; Stable Diffusion's "
            "is 0.18215"
        )
    side = unet.sample_size
    if type(side) is not int or not 1 <= side <= 1024:
        raise UserError(
            f"{place(config)}: unet/config.json: sample_size {shown(side)}: height and width of the latents, one whole "
            "number; Stable Diffusion's is 64"
        )
    if not parts.scheduler.alphas_cumprod.isfinite().all() or parts.scheduler.alphas_cumprod[0] <= 0:
        raise UserError(
            f"{place(config)}: scheduler/scheduler_config.json: its betas make no noise schedule; fetch it again"
        )
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if config.size is not None and config.size % factor:
        near = config.size // factor * factor
        raise UserError(
            f"policy.size: {config.size}: the VAE needs a multiple of {factor}; use {near or factor} or {near + factor}"
        )


def _check_weights(folder: Path, stem: str, module: Any, config: PolicyConfig) -> None:
    variant = f".{config.variant}" if config.variant else ""
    found = sorted(
        {*folder.glob(f"{stem}{variant}.safetensors"), *folder.glob(f"{stem}{variant}-*-of-*.safetensors")}
    )
    if not found:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")]
        problem = (
            f"only a pickle ({pickles[0].name}), which could execute code; save it again with safe_serialization=True"
            if pickles
            else f"no {stem}{variant}.safetensors there; fetch it, or check policy.variant"
        )
        raise UserError(f"{place(config)}: {folder.name}/: {problem}")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in found:
        held = weight_files.shapes(file, "policy.model")
        shapes |= {renamed(name): shape for name, shape in held.items() if renamed(name) not in _NOT_LOADED}
    # Loaders leave what is missing as it was initialised: such a text encoder is noise, and the run goes on.
    where = f"{place(config)}: {folder.name}/"
    weight_files.require_fit(shapes, shapes_of(module), where, f"{folder.name}/config.json")
