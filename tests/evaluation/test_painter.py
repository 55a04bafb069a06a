"""A picture is a function of its row alone, up to the last bits; the row's sampler reaches the pipeline."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch

from sdr1.evaluation.painter import Painter
from sdr1.evaluation.rows import Row, Sampler
from sdr1.models.pipeline import load_pipeline

TEXTS = ("a red circle", "a blue ring", "a green cross", "a skull", "two rings")


def test_a_picture_depends_on_its_text_and_seed_alone():
    painter = Painter(load_pipeline("sandbox"))
    rows = [Row(str(n), text, n, Sampler(steps=2), 32, 32) for n, text in enumerate(TEXTS)]
    whole = painter.draw(rows).astype(int)
    assert whole.shape == (5, 32, 32, 3)
    # Batches of another size change the order of float sums, not the noise: a level of 255 at most.
    batched = np.concatenate([painter.draw(rows[:2]), painter.draw(rows[2:])])
    assert batched.dtype == np.uint8
    assert np.abs(whole - batched).max() <= 1
    other = painter.draw([replace(rows[0], prompt="a blade"), *rows[1:3]])
    assert np.abs(whole[1:3] - other[1:]).max() <= 1
    reseeded = painter.draw([replace(row, seed=row.seed + 5) for row in rows])
    assert np.abs(whole - reseeded).max(axis=(1, 2, 3)).min() > 20


def test_the_sampler_reaches_the_pipeline():
    class Vae:
        config = SimpleNamespace(scaling_factor=0.5)

        def decode(self, latents: torch.Tensor) -> Any:
            return SimpleNamespace(sample=latents)

    class Pipeline:
        scheduler = diffusers.DDPMScheduler(beta_end=0.012)
        vae = Vae()

        def to(self, device: str) -> Pipeline:
            return self

        def __call__(self, texts: list[str], **options: Any) -> Any:
            self.options = options
            size = len(texts), 3, options["height"], options["width"]
            return SimpleNamespace(images=torch.full(size, 0.5 * (2 * 0.999 - 1)))

    pipeline = Pipeline()
    row = Row("0", "a ring", 0, Sampler("PNDMScheduler", 7, 3.5, 0.25), 3, 2)
    pictures = Painter(pipeline).draw([row])
    assert type(pipeline.scheduler) is diffusers.PNDMScheduler
    assert pipeline.scheduler.config.beta_end == 0.012
    assert pipeline.scheduler.config.skip_prk_steps
    options = [pipeline.options[key] for key in ("num_inference_steps", "guidance_scale", "eta")]
    assert options == [7, 3.5, 0.25]
    assert pictures.shape == (1, 2, 3, 3)
    assert (pictures == 255).all(), "0.999 x 255 is rounded, not cut"
