"""What can be known of a policy's files before any weights are loaded: parts, shapes, prediction type."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sdr1.base.errors import Unreachable, UserError, reason
from sdr1.base.plain_data import read_json, shown
from sdr1.config.training import SANDBOX, PolicyConfig
from sdr1.models import schedulers, weight_files

_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),
}
"""The parts of a pipeline and their classes; of schedulers any that knows betas."""
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
        # Absolute: the libraries ask the hub for a relative folder that lacks a part.
        return path.absolute()
    first, slash, rest = config.model.partition("/")
    if first in ("", ".", "..", "~") or not slash or "/" in rest or Path(first).is_dir():
        raise UserError(
            f"{_where(config)}: no such file or folder; give `sandbox`, a diffusers pipeline folder, a .safetensors "
            "checkpoint or a hub id"
        )
    return None


class Parts(NamedTuple):
    """What a pipeline's configs describe: modules on the meta device, tokenizer and DDIM scheduler."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


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
            f"{_where(config)}: its parts do not work together{size}: {reason(error)}; take all of them from one model"
        ) from error
    return folder


def unet(config: PolicyConfig) -> Any:
    """A UNet on the meta device, as its config describes it."""
    return copy.deepcopy(build(configs(config), config).unet)


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


def examine(config: PolicyConfig) -> Path:
    """The folder with the pipeline's configs, tokenizer and scheduler, once they are found to be good.

    Of a hub id only the configs are looked at; they are fetched unless cached.

    Raises:
        Unreachable: the configs are on the hub, out of reach.
        UserError: for every mistake that configs and the headers of weight files show.
    """
    path, folder = locate(config), configs(config)
    index = _read(folder / "model_index.json", config, "no diffusers pipeline")
    _check_parts(index, folder, config)
    parts = build(folder, config)
    _check_shapes(parts, config)
    if path is not None and path.is_dir():
        for part in _WEIGHTS:
            if part != "unet" or config.unet is None:
                _check_weights(folder / part, _WEIGHTS[part], getattr(parts, part), config)
    elif path is not None:
        _check_single_file(path, parts, config)
    if config.unet is not None:
        check_unet_file(config.unet, dict(parts.unet.config))
    return folder


def build(folder: Path, config: PolicyConfig) -> Parts:
    """The parts that the folder's configs describe: the one place where the libraries are given what anybody wrote.

    Raises:
        UserError: a config is missing or damaged, or describes nothing that can be built here.
    """
    unet = _read(folder / "unet" / "config.json", config, "no UNet config")
    text = _read(folder / "text_encoder" / "config.json", config, "no text encoder config")
    scheduler = _read(folder / "scheduler" / "scheduler_config.json", config, "no scheduler config")
    vae = _read(folder / "vae" / "config.json", config, "no VAE config")
    made = {
        name: _built(name, json.dumps(described, sort_keys=True), f"{_where(config)}: {name}/")
        for name, described in (
            ("unet", unet),
            ("vae", vae),
            ("text_encoder", text),
            ("scheduler", scheduler),
        )
    }
    tokenizer = _tokenizer(folder / "tokenizer", made["text_encoder"], config)
    return Parts(**made, tokenizer=tokenizer)


@functools.lru_cache(maxsize=16)
def _built(part: str, described: str, where: str) -> Any:
    """A module on the meta device, or a DDIM scheduler, as a config's JSON describes it; kept, since it is asked for often."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    values = json.loads(described)
    _require_sane(values, where, 10_000 if part == "scheduler" else 1_000_000)
    try:
        if part == "scheduler":
            return schedulers.for_latents(DDIMScheduler, values, where)
        with torch.device("meta"):
            if part == "text_encoder":
                return CLIPTextModel(CLIPTextConfig(**values.get("text_config", values))).eval()
            kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
            return kinds[part].from_config(values).eval()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where}: its config describes nothing that can be built here: {reason(error)}; fetch it again"
        ) from error


def _require_sane(values: Any, where: str, most: int, name: str = "") -> None:
    """Raise UserError for numbers of which the libraries would make a module or a table without end."""
    if isinstance(values, dict):
        for key, value in values.items():
            # A scale has a check that says what it is for.
            if key != "scaling_factor":
                _require_sane(value, where, most, key)
    elif isinstance(values, list):
        if len(values) > most:
            raise UserError(f"{where}: {name} is a list of {len(values):,}; fetch the config again")
        for value in values:
            _require_sane(value, where, most, name)
    elif isinstance(values, int | float):
        limit = 100 if "layers" in name else most
        if not abs(values) <= (limit if isinstance(values, int) else math.inf):
            raise UserError(
                f"{where}: {name} {shown(values)}: more than any model has; fetch the config again"
            )


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
    return build(configs(config), config).tokenizer


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
        held = _object(own, where)
        if held.get("cross_attention_dim") != base.get("cross_attention_dim"):
            raise UserError(
                f"{where}: cross_attention_dim {held.get('cross_attention_dim')}, the base's text encoder needs "
                f"{base.get('cross_attention_dim')}; give a UNet of the same family"
            )
        base, file = held, path / "diffusion_pytorch_model.safetensors"
    found = weight_files.shapes(file, "policy.unet")
    unet = _built("unet", json.dumps(base, sort_keys=True, default=str), where)
    weight_files.require_fit(found, _shapes(unet), where, "this UNet")


def _shapes(module: Any) -> weight_files.Shapes:
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
    for part, classes in _CLASSES.items():
        named = index.get(part)
        if not isinstance(named, list) or len(named) != 2 or None in named or not (folder / part).is_dir():
            raise UserError(
                f"{_where(config)}: the pipeline has no {part}; copy {part}/ from the model it was made from, and its "
                "entry in model_index.json"
            )
        known = _knows_betas(named[1]) if part == "scheduler" else named[1] in classes
        if not known or named[0] not in ("diffusers", "transformers"):
            raise UserError(
                f"{_where(config)}: model_index.json: {part} is {shown(named)}, which belongs to another kind of model; "
                f"Stable Diffusion 1.x and 2.x have {' or '.join(classes) or 'e.g. DDIMScheduler'}"
            )


def _knows_betas(name: Any) -> bool:
    import diffusers

    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return isinstance(kind, type) and "beta_start" in inspect.signature(kind.__init__).parameters


def _check_shapes(parts: Parts, config: PolicyConfig) -> None:
    unet, vae = parts.unet.config, parts.vae.config
    width = parts.text_encoder.config.hidden_size
    if unet.cross_attention_dim != width:
        raise UserError(
            f"{_where(config)}: the UNet reads text states of {unet.cross_attention_dim}, the text encoder gives "
            f"{width}: parts of different models; take unet/ and text_encoder/ from one"
        )
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise UserError(
            f"{_where(config)}: the UNet takes {unet.in_channels} channels and gives {unet.out_channels}, "
            f"the VAE has {vae.latent_channels}: an inpainting or image-to-image model; give a text-to-image one"
        )
    prediction = parts.scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{_where(config)}: scheduler prediction_type {prediction!r}: use epsilon, v_prediction or sample"
        )
    scale = vae.scaling_factor
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise UserError(
            f"{_where(config)}: vae/config.json: scaling_factor {scale!r}: latents are divided by it; Stable Diffusion's "
            "is 0.18215"
        )
    side = unet.sample_size
    if type(side) is not int or not 1 <= side <= 1024:
        raise UserError(
            f"{_where(config)}: unet/config.json: sample_size {shown(side)}: height and width of the latents, one whole "
            "number; Stable Diffusion's is 64"
        )
    if not parts.scheduler.alphas_cumprod.isfinite().all() or parts.scheduler.alphas_cumprod[0] <= 0:
        raise UserError(
            f"{_where(config)}: scheduler/scheduler_config.json: its betas make no noise schedule; fetch it again"
        )
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if config.size is not None and config.size % factor:
        near = config.size // factor * factor
        raise UserError(
            f"policy.size: {config.size}: the VAE needs a multiple of {factor}; use {near or factor} or {near + factor}"
        )


def _tokenizer(folder: Path, text: Any, config: PolicyConfig) -> Any:
    from transformers import CLIPTokenizer

    # Without its files transformers makes a tokenizer of no words, and none without a length cuts a prompt.
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise UserError(
            f"{_where(config)}: tokenizer/ has no vocab.json and merges.txt; copy tokenizer/ from the model it was made "
            "from"
        )
    length = _read(folder / "tokenizer_config.json", config, "no tokenizer config").get("model_max_length")
    places = text.config.max_position_embeddings
    if type(length) is not int or not 2 <= length <= places:
        raise UserError(
            f"{_where(config)}: tokenizer/tokenizer_config.json: model_max_length {shown(length)}: the text encoder reads "
            f"at most {places} tokens; set it to {places}"
        )
    try:
        made = CLIPTokenizer.from_pretrained(folder.absolute())
        ids = made("a", padding="max_length", max_length=length, truncation=True).input_ids
        highest = max([*ids, *made.get_vocab().values()])
    except Exception as error:
        raise UserError(
            f"{_where(config)}: tokenizer/ does not load ({reason(error)}); fetch it again"
        ) from error
    if highest >= text.config.vocab_size:
        raise UserError(
            f"{_where(config)}: tokenizer/ has a token {highest}, the text encoder knows {text.config.vocab_size}: parts "
            "of different models; take both from one"
        )
    return made


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
        raise UserError(f"{_where(config)}: {folder.name}/: {problem}")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in found:
        held = weight_files.shapes(file, "policy.model")
        shapes |= {_renamed(name): shape for name, shape in held.items() if _renamed(name) not in _NOT_LOADED}
    # Loaders leave what is missing as it was initialised: such a text encoder is noise, and the run goes on.
    where = f"{_where(config)}: {folder.name}/"
    weight_files.require_fit(shapes, _shapes(module), where, f"{folder.name}/config.json")


def _check_single_file(path: Path, parts: Parts, config: PolicyConfig) -> None:
    """Raise UserError unless what diffusers makes of the checkpoint's tensors fills the described parts."""
    held = current_names(_meta(weight_files.shapes(path, "policy.model")))
    for part in _WEIGHTS:
        if part == "unet" and config.unet is not None:
            continue
        module, where = getattr(parts, part), f"{_where(config)}: its {part}"
        made = converted(part, module, held, where)
        expected = _shapes(module)
        # What is beyond the described part is not loaded.
        found = {name: tuple(tensor.shape) for name, tensor in made.items() if name in expected}
        weight_files.require_fit(found, expected, where, f"the {part} in {config.config or 'its configs'}")


def current_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """A single file's tensors by the names that the libraries know: old text encoders have no `text_model.` in theirs."""
    old, new = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
    return {
        (new + name[len(old) :] if name.startswith(old) and not name.startswith(new) else name): tensor
        for name, tensor in tensors.items()
    }


def converted(part: str, module: Any, tensors: dict[str, Any], where: str) -> dict[str, Any]:
    """The tensors of a part, by its module's names, out of a single file's with their current names.

    Raises:
        UserError: one is missing or misshapen.
    """
    from diffusers.loaders import single_file_utils as utils

    try:
        if part == "unet":
            made = utils.convert_ldm_unet_checkpoint(dict(tensors), module.config)
        elif part == "vae":
            made = utils.convert_ldm_vae_checkpoint(dict(tensors), module.config)
        elif utils.is_open_clip_model(tensors):
            made = utils.convert_open_clip_checkpoint(module, tensors)
        else:
            made = utils.convert_ldm_clip_checkpoint(tensors)
    except Exception as error:
        raise UserError(
            f"{where}: a tensor is missing or misshapen ({reason(error)}); fetch it again"
        ) from error
    return {_renamed(name): tensor for name, tensor in made.items()}


def _meta(shapes: weight_files.Shapes) -> dict[str, Any]:
    import torch

    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _single_file_configs(path: Path, config: PolicyConfig) -> Path:
    """The folder with the configs and the tokenizer of a single-file checkpoint, which holds none of them.

    Raises:
        UserError: it is no Stable Diffusion 1.x or 2.x checkpoint, or its configs cannot be had.
    """
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
    kind = infer_diffusers_model_type(_meta(shapes))
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
    return (
        Path(name).absolute()
        if Path(name).is_dir()
        else _fetch_configs(f"policy.config: {name!r}", name, None)
    )


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
    if not file.is_file():
        raise UserError(
            f"{_where(config)}: {problem}: {file.parent.name}/{file.name} is missing; give a folder that diffusers' "
            "save_pretrained wrote"
        )
    return _object(file, _where(config))


def _object(file: Path, where: str) -> dict[str, Any]:
    try:
        held = read_json(file, where)
    except UserError as error:
        raise UserError(f"{error}; fetch it again") from error
    if not isinstance(held, dict):
        raise UserError(f"{where}: {file} holds no object; fetch it again")
    return held


def _where(config: PolicyConfig) -> str:
    return f"policy.model: {config.model!r}"
