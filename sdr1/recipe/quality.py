"""Measures what the recipe has made: the text states, the reward model's preferences, and the base model's rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

from sdr1.evaluation.protocols.sandbox import figures_of
from sdr1.evaluation.sandbox import oracle_records
from sdr1.evaluation.sandbox_rows import rows_of
from sdr1.method.steering import safety_direction
from sdr1.models.pipeline import load_pipeline
from sdr1.recipe.clip import enlarge
from sdr1.recipe.data import test_set, to_unit
from sdr1.recipe.oracle import through_vae
from sdr1.recipe.reward import preferences
from sdr1.recipe.spoil import pair
from sdr1.recipe.words import tokenize
from sdr1.sandbox.captions import (
    SAFE_ANCHORS,
    SYNONYMS,
    UNSAFE_ANCHORS,
    caption,
    claim_of,
    corrupt,
    phrase,
)
from sdr1.sandbox.prompts import CONCEPTS, TOPICS, prompts
from sdr1.sandbox.world import GLYPHS, SHAPES, Scene

ALPHAS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_HELD_OUT = range(5_000_000, 5_001_000)


def measure(out: Path, work: Path) -> dict[str, dict]:
    """The report on the text encoder, the reward model and the base; nothing is left in `work`."""
    return {"text": measure_text(out), **measure_clip(out), **measure_reward(out), "base": measure_base(out)}


@torch.no_grad()
def measure_text(out: Path) -> dict[str, float]:
    """Cosines of the pipeline's text states at a word's own position, "a WORD" against others: "empty", the highest
    with the empty prompt's state there over all nouns; "synonyms_low" and "synonyms_high", the lowest and highest of
    two synonyms; "concepts_high", the highest of words of two concepts."""
    folder = out / "pipeline"
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")

    def states(words: Sequence[str]) -> torch.Tensor:
        hidden = encoder(tokenize(tokenizer, [f"a {word}" if word else "" for word in words]))[0]
        return F.normalize(hidden[:, 2], dim=-1)

    empty = states([""])[0]
    nouns = [*SHAPES, *(word for words in SYNONYMS.values() for word in words)]
    count = len(next(iter(SYNONYMS.values())))
    unsafe = states(nouns[len(SHAPES) :])
    group = torch.arange(len(unsafe)) // count
    cosines, same = unsafe @ unsafe.T, group[:, None] == group[None]
    apart = same & ~torch.eye(len(unsafe), dtype=torch.bool)
    return {
        "empty": (states(nouns) @ empty).max().item(),
        "synonyms_low": cosines[apart].min().item(),
        "synonyms_high": cosines[apart].max().item(),
        "concepts_high": cosines[~same].max().item(),
    }


@torch.no_grad()
def measure_reward(out: Path) -> dict[str, dict[str, float]]:
    """How often the reward of a whole picture exceeds that of the same scene spoiled: by its own caption, and of safe
    scenes by unsafe prompts steered with several alphas ("steered_"); so also of any other safe scene spoiled
    ("across_"), which is what a group holds."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out / 'clip'}")
    vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", dtype=torch.float32)
    model.eval()
    whole, bad = preferences(_HELD_OUT)
    scenes = [pair(seed)[0] for seed in _HELD_OUT]
    rng = np.random.default_rng(6)
    said = _embed_texts(model, tokenizer, [caption(scene, rng) for scene in scenes])
    safe = torch.tensor([not scene.unsafe for scene in scenes])
    topics = [prompt.text for concept in CONCEPTS for prompt in prompts(concept, "tune", 4)]
    asked = _embed_texts(model, tokenizer, topics)
    direction = _direction(model, tokenizer)
    report: dict[str, dict[str, float]] = {}
    for name, decode in (("drawn", lambda x: x), ("decoded", lambda x: through_vae(vae, x))):
        seen, spoilt = _embed_pictures(model, decode(whole)), _embed_pictures(model, decode(bad))
        better = seen - spoilt
        found = {"own_caption": ((better * said).sum(1) > 0).float().mean().item()}
        for alpha in ALPHAS:
            steered = F.normalize(asked + alpha * direction, dim=1)
            found[f"steered_{alpha:g}"] = (better[safe] @ steered.T > 0).float().mean().item()
            of_whole, of_spoilt = seen[safe] @ steered.T, spoilt[safe] @ steered.T
            found[f"across_{alpha:g}"] = (of_whole[:, None] > of_spoilt[None]).float().mean().item()
        report[f"whole_over_spoiled_{name}"] = found
    return report


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
    direction = _direction(model, tokenizer)
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


def measure_base(out: Path) -> dict[str, float]:
    """The sandbox protocol's figures of `out/pipeline` on the tuning split, as the models are judged."""
    rows = rows_of(TOPICS, 100, 0, split="tune")
    records = oracle_records(load_pipeline(str(out / "pipeline")), rows, out / "oracle.safetensors")
    return {figure.name: figure.mean() for figure in figures_of(rows, records)}


def _direction(model: Any, tokenizer: Any) -> torch.Tensor:
    safe, unsafe = (_embed_texts(model, tokenizer, list(each)) for each in (SAFE_ANCHORS, UNSAFE_ANCHORS))
    return safety_direction(safe, unsafe)


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
