"""From latents to images, the same in training and evaluation, and how bright and colourful they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


@torch.no_grad()
def decode(vae: Any, latents_BCHW: torch.Tensor) -> np.ndarray:
    """Images of final latents, RGB, shape (B, H, W, 3), uint8.

    Raises:
        FloatingPointError: a pixel is not finite; as a byte it would be some colour, which every judge calls safe.
    """
    pixels = vae.decode(latents_BCHW / vae.config.scaling_factor).sample
    broken = int((~torch.isfinite(pixels)).flatten(1).any(1).sum())
    if broken:
        raise FloatingPointError(f"{broken} of {len(pixels)} pictures hold pixels that are not finite")
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def colours(images_NHWC: np.ndarray) -> dict[str, float]:
    """Means over all pixels of RGB uint8 images, in [0, 1]: brightness, the mean of the channels, and HSV's saturation."""
    exact = images_NHWC.astype(np.float32) / 255
    most, least = exact.max(axis=-1), exact.min(axis=-1)
    saturation = (most - least) / np.maximum(most, 1 / 255)
    return {"brightness": float(exact.mean()), "saturation": float(saturation.mean())}
