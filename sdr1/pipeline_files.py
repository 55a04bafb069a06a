"""What can be known of a policy's files before any weights are loaded: parts, shapes, prediction type."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sdr1 import weight_files
from sdr1.config import SANDBOX, PolicyConfig
from sdr1.errors import Unreachable, UserError, reason

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_OLD_NAMES = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
"""Of the VAE's attention in Stable Diffusion 1.x's own files; the libraries' loaders rename them and `text_model.`."""
_NOT_LOADED = ("embeddings.position_ids", "text_projection.weight")
"""Tensors that a text encoder's file may hold and its model does without."""
_SINGLE_FILES = ("v1", "v2")
"""Of diffusers' names for kinds of single-file checkpoints, those that are Stable Diffusion 1.x and 2.x."""


def locate(config: PolicyConfig) -> Path | None:
    """The folder or file that `policy.model` names; None for a hub id.

    Raises:
        UserError: it looks like a path and is not there.
    """
    if config.model == SANDBOX:
        from sdr1.sandbox import PIPELINE

        return PIPELINE
    path = Path(config.model)
    if path.exists():
        return path
    if config.model.startswith((".", "/", "~")) or config.model.count("/") != 1:
        raise UserError(
            f"{_where(config)}: no such file or folder; give `sandbox`, a diffusers pipeline folder, a .safetensors "
            "checkpoint or a hub id"
        )
    return None


def check(config: PolicyConfig) -> Path:
    """The folder with the pipeline's configs, tokenizer and scheduler, once they are found to be good.

    Of a hub id only the configs are looked at; they are fetched unless cached.

    Raises:
        Unreachable: the configs are on the hub, out of reach.
        UserError: for every mistake that configs and the headers of weight files show.
    """
    path, folder = locate(config), configs(config)
    index = _read(folder / "model_index.json", config, "no diffusers pipeline")
    _check_parts(index, folder, config)
    unet = _read(folder / "unet" / "config.json", config, "no UNet config")
    text = _read(folder / "text_encoder" / "config.json", config, "no text encoder config")
    scheduler = _read(folder / "scheduler" / "scheduler_config.json", config, "no scheduler config")
    vae = _read(folder / "vae" / "config.json", config, "no VAE config")
    _check_shapes(unet, text, vae, scheduler, config)
    _check_tokenizer(folder / "tokenizer", text, config)
    if path is not None and path.is_dir():
        for part, described in (("text_encoder", text), ("unet", unet), ("vae", vae)):
            if part != "unet" or config.unet is None:
                _check_weights(folder / part, _WEIGHTS[part], described, config)
    if config.unet is not None:
        check_unet_file(config.unet, unet)
    return folder


def configs(config: PolicyConfig) -> Path:
    """The folder with the pipeline's configs, tokenizer and scheduler.

    Raises:
        UserError: they cannot be had, or `policy.config` is given for a pipeline that brings its own.
    """
    path = locate(config)
    if path is not None and path.is_file():
        return _single_file_configs(path, config)
    if config.config is not None:
        raise UserError(
            f"policy.config: {config.config!r}: {config.model} brings its own configs; leave it out"
        )
    return _hub_configs(config) if path is None else path


def tokenizer(config: PolicyConfig) -> Any:
    """The pipeline's tokenizer."""
    from transformers import CLIPTokenizer

    folder = configs(config) / "tokenizer"
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{_where(config)}: tokenizer/ does not load ({reason(error)}); fetch it again"
        ) from error


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
        try:
            held = json.loads(own.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: config.json cannot be read ({error}); fetch it again") from error
        if held.get("cross_attention_dim") != base.get("cross_attention_dim"):
            raise UserError(
                f"{where}: cross_attention_dim {held.get('cross_attention_dim')}, the base's text encoder needs "
                f"{base.get('cross_attention_dim')}; give a UNet of the same family"
            )
        base, file = held, path / "diffusion_pytorch_model.safetensors"
    found = weight_files.shapes(file, "policy.unet")
    weight_files.require_fit(found, _described_shapes("unet", base), where, "this UNet")


def _described_shapes(part: str, config: dict[str, Any]) -> weight_files.Shapes:
    """Shape of every tensor of the part that its config.json describes."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "text_encoder":
            module = CLIPTextModel(CLIPTextConfig(**config.get("text_config", config)))
        else:
            module = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(config)
    return {_renamed(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _renamed(name: str) -> str:
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def _check_parts(index: dict[str, Any], folder: Path, config: PolicyConfig) -> None:
    kind = index.get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise UserError(
            f"{_where(config)}: a {kind}; only Stable Diffusion 1.x and 2.x text-to-image pipelines "
            "(StableDiffusionPipeline) can be trained: give one of these"
        )
    for part in _PARTS:
        named = index.get(part)
        if not named or named[0] is None or not (folder / part).is_dir():
            raise UserError(
                f"{_where(config)}: the pipeline has no {part}; copy {part}/ from the model it was made from, and its "
                "entry in model_index.json"
            )


def _check_shapes(
    unet: dict[str, Any],
    text: dict[str, Any],
    vae: dict[str, Any],
    scheduler: dict[str, Any],
    config: PolicyConfig,
) -> None:
    width = text.get("hidden_size", text.get("text_config", {}).get("hidden_size"))
    if unet.get("cross_attention_dim") != width:
        raise UserError(
            f"{_where(config)}: the UNet reads text states of {unet.get('cross_attention_dim')}, the text encoder gives "
            f"{width}: parts of different models; take unet/ and text_encoder/ from one"
        )
    channels = vae.get("latent_channels")
    if not unet.get("in_channels") == unet.get("out_channels") == channels:
        raise UserError(
            f"{_where(config)}: the UNet takes {unet.get('in_channels')} channels and gives {unet.get('out_channels')}, "
            f"the VAE has {channels}: an inpainting or image-to-image model; give a text-to-image one"
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{_where(config)}: scheduler prediction_type {prediction!r}: use epsilon, v_prediction or sample"
        )
    scale = vae.get("scaling_factor", 1)
    if not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise UserError(
            f"{_where(config)}: vae/config.json: scaling_factor {scale!r}: latents are divided by it; Stable Diffusion's "
            "is 0.18215"
        )
    factor = 2 ** (len(vae.get("block_out_channels", ())) - 1)
    if config.size is not None and config.size % factor:
        near = config.size // factor * factor
        raise UserError(
            f"policy.size: {config.size}: the VAE needs a multiple of {factor}; use {near or factor} or {near + factor}"
        )


def _check_tokenizer(folder: Path, text: dict[str, Any], config: PolicyConfig) -> None:
    # Without its files transformers makes a tokenizer of no words, and none without a length cuts a prompt.
    files = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise UserError(
            f"{_where(config)}: tokenizer/ has no vocab.json and merges.txt; copy tokenizer/ from the model it was made "
            "from"
        )
    length = _read(folder / "tokenizer_config.json", config, "no tokenizer config").get("model_max_length")
    places = text.get("text_config", text).get("max_position_embeddings", 77)
    if not isinstance(length, int) or length > places:
        raise UserError(
            f"{_where(config)}: tokenizer/tokenizer_config.json: model_max_length {length}: the text encoder reads at "
            f"most {places} tokens; set it to {places}"
        )


def _check_weights(folder: Path, stem: str, described: dict[str, Any], config: PolicyConfig) -> None:
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
        raise UserError(f"{_where(config)}: {folder.name}/: {problem}")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in found:
        held = weight_files.shapes(file, "policy.model")
        shapes |= {_renamed(name): shape for name, shape in held.items() if _renamed(name) not in _NOT_LOADED}
    # Loaders leave what is missing as it was initialised: such a text encoder is noise, and the run goes on.
    expected = _described_shapes(folder.name, described)
    where = f"{_where(config)}: {folder.name}/"
    weight_files.require_fit(shapes, expected, where, f"{folder.name}/config.json")


def _single_file_configs(path: Path, config: PolicyConfig) -> Path:
    """The folder with the configs and the tokenizer of a single-file checkpoint, which holds none of them.

    Raises:
        UserError: it is no Stable Diffusion 1.x or 2.x checkpoint, or its configs cannot be had.
    """
    import torch
    from diffusers.loaders.single_file_utils import (
        DIFFUSERS_DEFAULT_PIPELINE_PATHS,
        infer_diffusers_model_type,
    )

    if path.suffix != ".safetensors":
        raise UserError(
            f"{_where(config)}: a single file must be .safetensors; a {path.suffix or 'file without suffix'} may be a "
            "pickle, which could execute code: convert it first"
        )
    shapes = weight_files.shapes(path, "policy.model")
    kind = infer_diffusers_model_type(
        {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    )
    if kind not in _SINGLE_FILES or not any(name.startswith("model.diffusion_model.") for name in shapes):
        raise UserError(
            f"{_where(config)}: diffusers takes this checkpoint for {kind!r}; give a whole Stable Diffusion 1.x or 2.x "
            "checkpoint (a UNet alone belongs in policy.unet)"
        )
    for part, stem in (("VAE", "first_stage_model."), ("text encoder", "cond_stage_model.")):
        if not any(name.startswith(stem) for name in shapes):
            raise UserError(
                f"{_where(config)}: the checkpoint holds no {part} ({stem}*); give a whole one, or put its UNet over a "
                "pipeline folder with policy.unet"
            )
    name = config.config or DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    return Path(name) if Path(name).is_dir() else _fetch_configs(f"policy.config: {name!r}", name, None)


def _hub_configs(config: PolicyConfig) -> Path:
    at = f" at revision {config.revision!r}" if config.revision else ""
    return _fetch_configs(f"{_where(config)}{at}", config.model, config.revision)


def _fetch_configs(where: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt"]))
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"{where}: neither a folder here nor a hub id that can be reached: {reason(error)}; check the name, or download it "
            "and give the folder"
        ) from error


def _read(file: Path, config: PolicyConfig, problem: str) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{_where(config)}: {problem}: {file.parent.name}/{file.name} is missing; give a folder that diffusers' "
            "save_pretrained wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{_where(config)}: {file.parent.name}/{file.name} cannot be read ({error}); fetch it again"
        ) from error
    if not isinstance(held, dict):
        raise UserError(f"{_where(config)}: {file.name} holds no object; fetch it again")
    return held


def _where(config: PolicyConfig) -> str:
    return f"policy.model: {config.model!r}"
