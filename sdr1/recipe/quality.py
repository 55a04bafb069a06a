"""Measures what the recipe has made: CLIP's preferences and steered reward, and the base model's rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from sdr1.evaluation.protocols.sandbox import figures_of
from sdr1.evaluation.rows import Sampler
from sdr1.evaluation.sandbox import oracle_records
from sdr1.evaluation.sandbox_rows import rows_of
from sdr1.models.pipeline import load_pipeline
from sdr1.recipe.clip import enlarge
from sdr1.recipe.data import test_set, to_unit
from sdr1.recipe.oracle import through_vae
from sdr1.sandbox.captions import SAFE_ANCHORS, UNSAFE_ANCHORS, claim_of, corrupt, phrase
from sdr1.sandbox.prompts import CONCEPTS, TOPICS, prompts
from sdr1.sandbox.world import GLYPHS, Scene

ALPHAS = (0.0, 0.5, 1.0, 1.5)
GUIDANCES = (2.5, 4.0)


def measure(out: Path, work: Path) -> dict[str, dict]:
    """The report on CLIP and on the base model at two guidance scales; nothing is left in `work`."""
    bases = {f"base_guidance_{g:g}": measure_base(out, g) for g in GUIDANCES}
    return {**measure_clip(out), **bases}


def measure_clip(out: Path) -> dict[str, dict[str, float]]:
    """CLIP of `out/clip` on the test pictures, drawn and after the VAE.

    Returns "preference": how often the right caption beats one with one thing wrong, by what is wrong; "auc": how
    often, for an unsafe prompt, a benign picture's steered reward exceeds a glyph's, by alpha and kind of prompt.
    """
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out / 'clip'}")
    vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", dtype=torch.float32)
    model.eval()
    scenes, pictures = test_set()
    rng = np.random.default_rng(5)
    claims = [claim_of(scene, rng) for scene in scenes]
    wrongs = [corrupt(claim, rng) for claim in claims]
    right = _embed_texts(model, tokenizer, [phrase(claim, rng) for claim in claims])
    wrong = _embed_texts(model, tokenizer, [phrase(claim, rng) for _, claim in wrongs])
    ways = np.array([way for way, _ in wrongs])
    report: dict[str, dict[str, float]] = {}
    safe = _embed_texts(model, tokenizer, list(SAFE_ANCHORS)).mean(0)
    unsafe = _embed_texts(model, tokenizer, list(UNSAFE_ANCHORS)).mean(0)
    direction = F.normalize(safe - unsafe, dim=0)
    glyph = torch.tensor([scene.unsafe for scene in scenes])
    for name, images in (("drawn", pictures), ("decoded", through_vae(vae, pictures))):
        seen = _embed_pictures(model, images)
        better = ((seen * right).sum(1) > (seen * wrong).sum(1)).numpy()
        report[f"preference_{name}"] = {way: float(better[ways == way].mean()) for way in sorted(set(ways))}
        for alpha in ALPHAS:
            rates = {}
            for concept in CONCEPTS:
                texts = [prompt.text for prompt in prompts(concept, "tune", 8)]
                steered = F.normalize(_embed_texts(model, tokenizer, texts) + alpha * direction, dim=1)
                of_concept = torch.tensor(
                    [scene.unsafe and (concept == "generic" or _glyph(scene) == concept) for scene in scenes]
                )
                rewards = seen @ steered.T
                above = rewards[~glyph][:, None] > rewards[of_concept][None]
                rates[concept] = above.float().mean().item()
            report[f"auc_{name}_alpha_{alpha:g}"] = rates
    return report


def measure_base(out: Path, guidance: float) -> dict[str, float]:
    """The sandbox protocol's figures of `out/pipeline` on the tuning split, by DDIM with eta 1."""
    rows = rows_of(TOPICS, 100, 0, Sampler(guidance_scale=guidance, eta=1.0), "tune")
    records = oracle_records(load_pipeline(str(out / "pipeline")), rows, out / "oracle.safetensors")
    return {figure.name: figure.mean() for figure in figures_of(rows, records)}


def _glyph(scene: Scene) -> str:
    return next(thing.kind for thing in scene.things if thing.kind in GLYPHS)


@torch.no_grad()
def _embed_texts(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    return torch.cat(
        [model.encode_text(tokenizer(texts[n : n + 500]), normalize=True) for n in range(0, len(texts), 500)]
    )


@torch.no_grad()
def _embed_pictures(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [model.encode_image(enlarge(to_unit(chunk)), normalize=True) for chunk in pictures.split(250)]
    )
