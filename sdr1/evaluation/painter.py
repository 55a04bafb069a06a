"""A diffusers pipeline that draws the rows of an evaluation, and PNG as the form in which images travel and rest."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdr1.base.errors import UserError
from sdr1.evaluation.rows import Row
from sdr1.models import pictures, schedulers


class Painter:
    """Draws batches; every row starts from its own noise."""

    def __init__(self, pipeline: Any, device: str = "cpu") -> None:
        self.pipeline = pipeline.to(device)
        self._config = pipeline.scheduler.config

    def draw(self, rows: Sequence[Row]) -> np.ndarray:
        """RGB images, shape (N, H, W, 3), uint8, of rows with one sampler and one size.

        Raises:
            UserError: the model draws something that is no picture.
        """
        row = rows[0]
        # The constructor's own defaults would hide what the pipeline was trained with.
        self.pipeline.scheduler = schedulers.make(row.sampler.scheduler, self._config)
        latents = self.pipeline(
            [row.prompt for row in rows],
            num_inference_steps=row.sampler.steps,
            guidance_scale=row.sampler.guidance_scale,
            eta=row.sampler.eta,
            height=row.height,
            width=row.width,
            generator=[torch.Generator().manual_seed(row.seed) for row in rows],
            output_type="latent",
        ).images
        try:
            return pictures.decode(self.pipeline.vae, latents)
        except FloatingPointError as error:
            raise UserError(
                f"model: {row.sampler.scheduler}, {row.sampler.steps} steps, guidance {row.sampler.guidance_scale:g}, "
                f"from row {row.id}: {error}; lower the guidance, or take an earlier checkpoint"
            ) from error


def encode(images_NHWC: np.ndarray) -> list[bytes]:
    """Every RGB uint8 image as a PNG."""
    return [_png(image) for image in images_NHWC]


def decode(pngs: Sequence[bytes]) -> np.ndarray:
    """RGB images, shape (N, H, W, 3), uint8, of image files with one size."""
    return np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs])


def _png(image_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "png", compress_level=3)
    return buffer.getvalue()
