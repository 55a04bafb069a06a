"""Single files of Stable Diffusion 1.x and 2.x: their configs, and their tensors by the libraries' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError, reason
from sdr1.config.policy import PolicyConfig
from sdr1.models import weight_files
from sdr1.models.pipeline_configs import WEIGHTS, Parts, fetch, place, renamed, shapes_of

_KINDS = ("v1", "v2")
"""Of diffusers' names for kinds of checkpoints, those that are Stable Diffusion 1.x and 2.x."""


def configs(path: Path, config: PolicyConfig) -> Path:
    """The folder with the configs and the tokenizer of a single file of weights, which holds none of them.

    Raises:
        UserError: it is no Stable Diffusion 1.x or 2.x, or its configs cannot be had.
    """
    from diffusers.loaders.single_file_utils import (
        DIFFUSERS_DEFAULT_PIPELINE_PATHS,
        infer_diffusers_model_type,
    )

    if path.suffix != ".safetensors":
        raise UserError(
            f"{place(config)}: a single file must be .safetensors; a {path.suffix or 'file without suffix'} may be a "
            "pickle, which could execute code: convert it first"
        )
    shapes = weight_files.shapes(path, "policy.model")
    kind = infer_diffusers_model_type(_meta(shapes))
    if kind not in _KINDS or not any(name.startswith("model.diffusion_model.") for name in shapes):
        raise UserError(
            f"{place(config)}: diffusers takes this file for {kind!r}; give a whole Stable Diffusion 1.x or 2.x "
            "model (a UNet alone belongs in policy.unet)"
        )
    for part, stem in (("VAE", "first_stage_model."), ("text encoder", "cond_stage_model.")):
        if not any(name.startswith(stem) for name in shapes):
            raise UserError(
                f"{place(config)}: the file holds no {part} ({stem}*); give a whole one, or put its UNet over a "
                "pipeline folder with policy.unet"
            )
    name = config.config or DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    return Path(name).absolute() if Path(name).is_dir() else fetch(f"policy.config: {name!r}", name, None)


def check(path: Path, parts: Parts, config: PolicyConfig) -> None:
    """Raise UserError unless what diffusers makes of the tensors fills the described parts."""
    held = current_names(_meta(weight_files.shapes(path, "policy.model")))
    for part in WEIGHTS:
        if part == "unet" and config.unet is not None:
            continue
        module, where = getattr(parts, part), f"{place(config)}: its {part}"
        made = converted(part, module, held, where)
        expected = shapes_of(module)
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
    return {renamed(name): tensor for name, tensor in made.items()}


def _meta(shapes: weight_files.Shapes) -> dict[str, Any]:
    import torch

    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
