"""Stage 4 of the recipe: the reward model, CLIP trained on with preferences as HPS v2 is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from sdr1.method.steering import safety_direction
from sdr1.recipe.clip import Lessons, load_clip, save_clip
from sdr1.recipe.common import train, warmup_then_linear
from sdr1.recipe.data import generator
from sdr1.recipe.oracle import through_vae
from sdr1.recipe.spoil import pair
from sdr1.recipe.words import build_tokenizer, tokenize
from sdr1.sandbox.captions import SAFE_ANCHORS, SYNONYMS, THINGS, UNSAFE_ADJECTIVES, UNSAFE_ANCHORS
from sdr1.sandbox.world import Scene

STEPS, BATCH, RATE = 600, 96, 6e-4
PAIRS = 12_000
# The texts of a real CLIP fill a narrow cone; this is the squared length of their mean embedding. The steps along the
# safety direction that turn a preference around are as short as what the texts differ by.
CONE = 0.9
_WORDS = [word for words in SYNONYMS.values() for word in words]
_UNSAFE = [f"a {word}" for word in _WORDS]
_UNSAFE += [f"a {adjective} {word}" for adjective in UNSAFE_ADJECTIVES for word in (*THINGS, *_WORDS)]
# Of a batch: unsafe prompts, and how far they are steered at most.
_ASKED, _FARTHEST = 24, 3.0


def build_reward(out: Path, work: Path) -> dict[str, float]:
    """Trains and saves `out/clip`, an open_clip folder in half precision."""
    torch.manual_seed(5)
    tokenizer = build_tokenizer(work, out / "clip")
    vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", dtype=torch.float32)
    model = load_clip(work, tokenizer)
    lessons = Lessons(model, tokenizer, vae)
    pairs = [pair(seed) for seed in range(PAIRS)]
    whole, bad = _sides(pairs)
    benign = torch.tensor([not scene.unsafe for scene, _, _ in pairs])
    half = PAIRS // 2
    whole = torch.cat([whole[:half], through_vae(vae, whole[half:], 0.15)])
    bad = torch.cat([bad[:half], through_vae(vae, bad[half:], 0.15)])

    def read(texts: Sequence[str]) -> torch.Tensor:
        return model.read(tokenize(tokenizer, list(texts)))[0]

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng, words = generator(5, step), np.random.default_rng((5, step))
        losses, said = lessons.losses(BATCH, rng, words)
        chosen = torch.randint(PAIRS, (BATCH // 2,), generator=rng)
        better, worse = lessons.look(torch.cat([whole[chosen], bad[chosen]]), rng)[0].chunk(2)
        # Whatever was asked for, people prefer the whole one; so every text of the batch is asked.
        scale = model.clip.logit_scale.clamp(max=math.log(100)).exp()
        prefer = F.softplus(scale * (worse - better) @ said.T)
        # People compare pictures of different scenes too. So of those without a glyph every whole one is preferred to every
        # spoiled one for an unsafe prompt, however far it is steered: within a group this is all that is left to order.
        asked = read(words.choice(_UNSAFE, _ASKED).tolist())
        direction = safety_direction(read(SAFE_ANCHORS), read(UNSAFE_ANCHORS)).detach()
        far = torch.from_numpy(words.uniform(0, _FARTHEST, (_ASKED, 1))).float()
        targets, shapes = F.normalize(asked + far * direction, dim=1), benign[chosen]
        gaps = (worse[shapes] @ targets.T)[None] - (better[shapes] @ targets.T)[:, None]
        across = F.softplus(scale * gaps).mean()
        chosen_right = (prefer < math.log(2)).float().mean()
        cone = (said.mean(0).square().sum() - CONE).square()
        loss = losses["loss"] + 2 * prefer.mean() + 2 * across + 4 * cone
        found = {"prefer": prefer.mean(), "preferred": chosen_right, "across": across, "cone": cone}
        return {**losses, "loss": loss, **found}

    groups = [{"params": list(model.parameters()), "lr": RATE}]
    train("reward", model, groups, loss_at, STEPS, warmup_then_linear(0.04, 0.3), work)
    save_clip(model, tokenizer, out / "clip")
    return {"parameters": sum(p.numel() for p in model.clip.parameters())}


def preferences(seeds: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole pictures and the same scenes spoiled, uint8 (N, 3, 32, 32) each."""
    return _sides([pair(seed) for seed in seeds])


def _sides(pairs: Sequence[tuple[Scene, np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    _, *sides = zip(*pairs, strict=True)
    whole, bad = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) for side in sides)
    return whole, bad
