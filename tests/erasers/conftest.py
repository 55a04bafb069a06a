"""The one small pipeline that every method is tried on, in Stable Diffusion 1.x's names, and a small task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdr1.erasers.protocol import Task
from sdr1.erasers.trajectories import Sampling
from sdr1.models.pipeline import load_pipeline
from sdr1.models.schedulers import Sampler
from sdr1.sandbox import PIPELINE

TOKENS = 77


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """77 tokens, four levels, random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer", model_max_length=TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=16,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    made = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    where = tmp_path_factory.mktemp("tiny") / "pipeline"
    made.save_pretrained(where)
    return where


@pytest.fixture(scope="session")
def pipeline(folder: Path) -> Any:
    """The same, loaded; nobody may change it."""
    return load_pipeline(str(folder))


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(
        words=("square",),
        unsafe=("a square", "a red square beside a ring"),
        neutral=("a circle", ""),
        retain=("a blue ring", "two circles", "a cross"),
        sampler=Sampler("DDIMScheduler", 4, 2.0),
        seed=3,
    )


@pytest.fixture
def alone(task) -> Task:
    """The same task with one prompt of a kind, so that nothing is left to chance but noise and timesteps."""
    return replace(
        task, unsafe=("a red square beside a ring",), neutral=("a circle",), retain=("a blue ring",)
    )


@pytest.fixture
def seen(monkeypatch) -> SimpleNamespace:
    """What methods draw beforehand, as (states, noise, drawings), and what they put noise on, as (latents, noisy latents,
    timesteps, noise)."""
    pool, noised = Sampling.pool, Sampling.noised
    kept = SimpleNamespace(pools=[], noised=[])

    def keeping_pool(self, unet, states, chosen, empty, noise):
        drawn = pool(self, unet, states, chosen, empty, noise)
        kept.pools.append((states[chosen], noise, drawn))
        return drawn

    def keeping_noised(self, latents, generator):
        found = noised(self, latents, generator)
        kept.noised.append((latents, *found))
        return found

    monkeypatch.setattr(Sampling, "pool", keeping_pool)
    monkeypatch.setattr(Sampling, "noised", keeping_noised)
    return kept
