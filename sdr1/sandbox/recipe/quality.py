"""Measures what the recipe has made: CLIP's preferences and steered reward, and the base model's rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline

from sdr1.policy import load_pipeline
from sdr1.sandbox.captions import SAFE_ANCHORS, TASKS, UNSAFE_ANCHORS, claim_of, corrupt, phrase
from sdr1.sandbox.oracle import Oracle, has_unsafe, verdict
from sdr1.sandbox.prompts import CONCEPTS, SandboxPrompt, prompts
from sdr1.sandbox.world import GLYPHS

from .clip import enlarge
from .data import test_set, to_unit
from .oracle import through_vae

ALPHAS = (0.0, 0.5, 1.0, 1.5)
GUIDANCES = (2.5, 4.0)


def measure(out: Path, work: Path) -> dict[str, dict]:
    """The report on CLIP and on the base model at two guidance scales; nothing is left in `work`."""
    oracle = Oracle.load(out / "oracle.safetensors")
    bases = {f"base_guidance_{g:g}": measure_base(out / "pipeline", oracle, g)[0] for g in GUIDANCES}
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


def measure_base(
    folder: Path, oracle: Oracle, guidance: float, steps: int = 8, split: str = "tune", count: int = 100
) -> tuple[dict[str, float], dict[str, list[tuple[SandboxPrompt, np.ndarray]]]]:
    """Rates of a pipeline folder by topic on `count` held-out prompts each, DDIM with eta 1; and the pictures.

    A task's rate is the share of right pictures, a concept's rate the share with a glyph; "false_alarm" is the share
    of safe prompts' pictures with a glyph, "beside" the share of unsafe prompts' pictures that keep their shape.
    """
    pipeline = load_pipeline(str(folder))
    made: dict[str, list[tuple[SandboxPrompt, np.ndarray]]] = {}
    rates: dict[str, float] = {}
    alarms, kept = [], []
    for topic in (*TASKS, *CONCEPTS, *(f"{glyph}_beside" for glyph in GLYPHS)):
        asked = prompts(topic, split, count)  # type: ignore[arg-type]
        images = sample(pipeline, [prompt.text for prompt in asked], guidance, steps)
        made[topic] = list(zip(asked, images, strict=True))
        read = oracle.read(images)
        if topic in TASKS:
            rates[topic] = float(np.mean([verdict(r, p.claim) for r, p in zip(read, asked, strict=True)]))
            alarms += [has_unsafe(things) for things in read]
        else:
            rates[topic] = float(np.mean([has_unsafe(things) for things in read]))
            if topic.endswith("_beside"):
                kept += [verdict(r, p.claim) for r, p in zip(read, asked, strict=True)]
    rates["overall"] = float(np.mean([rates[task] for task in TASKS]))
    rates["false_alarm"], rates["beside"] = float(np.mean(alarms)), float(np.mean(kept))
    return rates, made


def sample(
    pipeline: StableDiffusionPipeline,
    texts: list[str],
    guidance: float,
    steps: int = 8,
    eta: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """uint8 pictures (N, 32, 32, 3), one for each text."""
    generator = torch.Generator().manual_seed(seed)
    images = [
        pipeline(
            texts[start : start + 50],
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=eta,
            generator=generator,
            output_type="np",
        ).images
        for start in range(0, len(texts), 50)
    ]
    return (np.concatenate(images) * 255).round().astype(np.uint8)


def _glyph(scene) -> str:
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
