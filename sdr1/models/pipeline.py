"""A diffusers pipeline, loaded from a folder, a single file or the hub, in one way for all who draw or train."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from sdr1.base.errors import UserError, reason
from sdr1.config.policy import ModelFiles, PolicyConfig
from sdr1.models import pipeline_files, schedulers, single_file, weight_files

_UNUSED = {
    "safety_checker": None,
    "requires_safety_checker": False,
    "feature_extractor": None,
    "image_encoder": None,
}
"""Parts that need not be there, whatever model_index.json says."""


def named(model: str, files: ModelFiles | None = None) -> PolicyConfig:
    """What loads a model for drawing alone."""
    return PolicyConfig(model=model, steps=2, **(files.model_dump() if files else {}))


def load_pipeline(model: str, files: ModelFiles | None = None) -> Any:
    """The pipeline of a name that `policy.model` may hold, as it is; see `load`."""
    return load(named(model, files))


def load(config: PolicyConfig) -> Any:
    """A diffusers StableDiffusionPipeline in float32, without safety checker: training must see what the model draws.

    Raises:
        UserError: a file of it is wrong, or the hub id cannot be reached.
    """
    import diffusers
    import transformers
    from diffusers import StableDiffusionPipeline

    # A bar for each of many loads in many processes tells nobody anything.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    configs = pipeline_files.examine(config)
    path = pipeline_files.locate(config)
    try:
        if path is not None and path.is_file():
            pipeline = StableDiffusionPipeline.from_single_file(
                str(path),
                config=str(configs),
                torch_dtype=torch.float32,
                text_encoder=_text_encoder(path, configs, config),
                **_UNUSED,
            )
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(
                config.model if path is None else str(path),
                revision=config.revision,
                variant=config.variant,
                use_safetensors=True,
                dtype=torch.float32,
                **_UNUSED,
            )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"policy.model: {config.model!r}: not a Stable Diffusion pipeline that loads here: {reason(error)}"
        ) from error
    if config.unet is not None:
        _put_unet_over(pipeline, config.unet)
    where = f"policy.model: {config.model!r}"
    for part in ("text_encoder", "unet", "vae"):
        weight_files.require_finite(getattr(pipeline, part).state_dict(), f"{where}: {part}")
    pipeline.scheduler = schedulers.for_latents(
        type(pipeline.scheduler), pipeline.scheduler.config, f"{where}: scheduler"
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text_encoder(path: Path, configs: Path, config: PolicyConfig) -> Any:
    """The text encoder of a single file, of older names too, which diffusers does not know."""
    from safetensors import safe_open
    from transformers import CLIPTextModel

    model = CLIPTextModel(CLIPTextModel.config_class.from_pretrained(configs / "text_encoder"))
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("cond_stage_model.")]  # noqa: SIM118
        tensors = single_file.current_names({name: file.get_tensor(name) for name in names})
    where = f"policy.model: {config.model!r}: its text_encoder"
    held = single_file.converted("text_encoder", model, tensors, where)
    model.load_state_dict({name: held[name.removeprefix("text_model.")] for name in model.state_dict()})
    return model.eval()


def _put_unet_over(pipeline: Any, path: Path) -> None:
    from diffusers import UNet2DConditionModel

    pipeline_files.check_unet_file(path, dict(pipeline.unet.config))
    if path.is_dir():
        pipeline.unet = UNet2DConditionModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    else:
        pipeline.unet.load_state_dict(weight_files.state_dict(path, "policy.unet"))


def sha256(pipeline: Any) -> str:
    """Digest of the parameters of text encoder, UNet and VAE, by name; equal for equal models wherever they lie."""
    digest = hashlib.sha256()
    for part in ("text_encoder", "unet", "vae"):
        for name, tensor in sorted(getattr(pipeline, part).state_dict().items()):
            digest.update(f"{part}.{name}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
