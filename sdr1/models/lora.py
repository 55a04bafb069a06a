"""LoRA adapters on a UNet: put there, switched off, merged into it, and saved for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdr1.base.errors import UserError, reason
from sdr1.config.policy import LoraConfig


def add(unet: Any, config: LoraConfig, seed: int, gaussian: bool = False) -> None:
    """Put trainable adapters on a UNet, initialised by `seed` alone: by a normal distribution of deviation 1 / rank where
    `gaussian`, else as linear layers are.

    Raises:
        UserError: the UNet has no such layers.
    """
    import peft

    where = f"policy.lora.target_modules: {list(config.target_modules)}"
    names = [f".{name}" for name, _ in unet.named_modules()]
    # Of several names peft takes those that it finds, and says nothing of the others.
    missing = [
        target for target in config.target_modules if not any(name.endswith(f".{target}") for name in names)
    ]
    if missing or not config.target_modules:
        raise UserError(
            f"{where}: no such layers in the UNet: {', '.join(missing) or 'none is named'}; use names such as to_q, to_k, "
            "to_v, to_out.0"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet.add_adapter(
                peft.LoraConfig(
                    r=config.rank,
                    lora_alpha=config.alpha,
                    target_modules=list(config.target_modules),
                    init_lora_weights="gaussian" if gaussian else True,
                )
            )
        except Exception as error:
            raise UserError(
                f"{where}: {reason(error)}; name linear or convolution layers such as to_q, to_k, to_v, to_out.0"
            ) from error


@contextmanager
def switched_off(unet: Any) -> Iterator[None]:
    """Context in which the UNet predicts as the base model does."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def merge(unet: Any) -> None:
    """Put the adapters' update into the UNet's own weights; no adapter is left."""
    unet.fuse_lora()
    unet.unload_lora()


def save(unet: Any, config: LoraConfig, folder: Path) -> None:
    """Write the adapters alone, as diffusers does."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=_layers(unet, config))


def save_kohya(unet: Any, config: LoraConfig, file: Path) -> None:
    """Write the adapters alone as one file with kohya's names, which other programs read."""
    from diffusers.utils import convert_state_dict_to_kohya
    from safetensors.torch import save_file

    layers = {f"unet.{name}": layer for name, layer in _layers(unet, config).items()}
    save_file(convert_state_dict_to_kohya(layers), file)


def _layers(unet: Any, config: LoraConfig) -> dict[str, torch.Tensor]:
    """The adapters under peft's names, alpha / rank multiplied in: readers take alpha for rank."""
    from peft import get_peft_model_state_dict

    scale = config.alpha / config.rank
    return {
        name: (layer * scale if ".lora_B." in name else layer).contiguous()
        for name, layer in get_peft_model_state_dict(unet).items()
    }
