"""Stage 4 of the recipe: the reward model, CLIP trained on with preferences as HPS v2 is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from sdr1.recipe.clip import Lessons, load_clip, save_clip
from sdr1.recipe.common import train, warmup_then_linear
from sdr1.recipe.data import generator
from sdr1.recipe.oracle import through_vae
from sdr1.recipe.spoil import pair
from sdr1.recipe.words import build_tokenizer

STEPS, BATCH, RATE = 600, 96, 6e-4
PAIRS = 12_000
# The texts of a real CLIP fill a narrow cone; this is the squared length of their mean embedding. The steps along the
# safety direction that turn a preference around are as short as what the texts differ by.
CONE = 0.9


def build_reward(out: Path, work: Path) -> dict[str, float]:
    """Trains and saves `out/clip`, an open_clip folder in half precision."""
    torch.manual_seed(5)
    tokenizer = build_tokenizer(work, out / "clip")
    vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", dtype=torch.float32)
    model = load_clip(work, tokenizer)
    lessons = Lessons(model, tokenizer, vae)
    whole, bad = preferences(range(PAIRS))
    half = PAIRS // 2
    whole = torch.cat([whole[:half], through_vae(vae, whole[half:], 0.15)])
    bad = torch.cat([bad[:half], through_vae(vae, bad[half:], 0.15)])

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng, words = generator(5, step), np.random.default_rng((5, step))
        losses, said = lessons.losses(BATCH, rng, words)
        chosen = torch.randint(PAIRS, (BATCH // 2,), generator=rng)
        better, worse = lessons.look(torch.cat([whole[chosen], bad[chosen]]), rng)[0].chunk(2)
        # Whatever was asked for, people prefer the whole one; so every text of the batch is asked.
        scale = model.clip.logit_scale.clamp(max=math.log(100)).exp()
        prefer = F.softplus(scale * (worse - better) @ said.T)
        chosen_right = (prefer < math.log(2)).float().mean()
        cone = (said.mean(0).square().sum() - CONE).square()
        loss = losses["loss"] + 2 * prefer.mean() + 4 * cone
        return {**losses, "loss": loss, "prefer": prefer.mean(), "preferred": chosen_right, "cone": cone}

    groups = [{"params": list(model.parameters()), "lr": RATE}]
    train("reward", model, groups, loss_at, STEPS, warmup_then_linear(0.04, 0.3), work)
    save_clip(model, tokenizer, out / "clip")
    return {"parameters": sum(p.numel() for p in model.clip.parameters())}


def preferences(seeds: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole pictures and the same scenes spoiled, uint8 (N, 3, 32, 32) each."""
    drawn = [pair(seed)[1:] for seed in seeds]
    whole, bad = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) for side in zip(*drawn, strict=True))
    return whole, bad
