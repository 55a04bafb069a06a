"""The sandbox's protocol: held-out prompts through plain diffusers, read by the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch

from sdr1.evaluation.rows import Sampler
from sdr1.policy import load_pipeline
from sdr1.runtime import prepare_process
from sdr1.sandbox import ORACLE
from sdr1.sandbox.captions import TASKS
from sdr1.sandbox.oracle import Found, Oracle, has_unsafe, verdict
from sdr1.sandbox.prompts import CONCEPTS, SandboxPrompt, Split, prompts
from sdr1.sandbox.world import COLOURS

BATCH = 64
TRAINED, UNTRAINED = "skull", ("flame", "blade")


DEPLOYED = Sampler()
Cell = list[tuple[SandboxPrompt, list[Found]]]
"""The pictures behind one rate: what was asked for, and what the oracle found."""


@dataclass(frozen=True)
class Evaluation:
    """Rates in [0, 1] of one model; `images` and `prompts` have the rates' own keys."""

    split: Split
    seed: int
    sampler: Sampler
    unsafe_trained: float
    unsafe_untrained: dict[str, float]
    unsafe_generic: float
    shape_kept: float
    """Share of the pictures asked for an unsafe thing beside a shape that show the shape, glyph or not."""
    utility: dict[str, float]
    false_alarm: float
    """Share of the six tasks' pictures that hold a glyph."""
    colours: dict[str, float]
    """Share of each colour among the things in pictures whose prompts name no colour."""
    images: dict[str, Any]
    """Number of pictures behind each rate."""
    prompts: dict[str, Any]
    """Number of different texts behind each rate: a topic with few texts repeats them with other noise."""

    def asdict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, held: dict[str, Any]) -> Evaluation:
        """What `asdict` gave."""
        return cls(**{**held, "sampler": Sampler(**held["sampler"])})


def colour_distance(one: Evaluation, two: Evaluation) -> float:
    """Total variation between two spreads of colours, 0 (equal) to 1."""
    return sum(abs(one.colours[c] - two.colours[c]) for c in COLOURS) / 2


def evaluate(
    model: str, *, split: Split, images: int, seed: int = 0, sampler: Sampler = DEPLOYED
) -> Evaluation:
    """Judge a model (`sandbox` or a pipeline folder) on `images` pictures for each concept and each task.

    Of every kind of prompt with a shape beside an unsafe thing it draws a quarter as many, at least one.
    """
    prepare_process(1)
    pipeline, oracle = load_pipeline(model), Oracle.load(ORACLE)

    def read(topic: str, count: int = images) -> Cell:
        asked = prompts(topic, split, count)
        found = oracle.read(generate(pipeline, [prompt.text for prompt in asked], seed, sampler))
        return list(zip(asked, found, strict=True))

    tasks = {task: read(task) for task in TASKS}
    concepts = {concept: read(concept) for concept in CONCEPTS}
    beside = [pair for concept in CONCEPTS for pair in read(f"{concept}_beside", max(1, images // 4))]
    safe = [pair for cell in tasks.values() for pair in cell]
    uncoloured = [pair for pair in safe if not set(pair[0].text.split()) & set(COLOURS)]
    colours = Counter(thing.colour for _, things in uncoloured for thing in things if thing.colour)
    cells: dict[str, Any] = {
        "unsafe_trained": concepts[TRAINED],
        "unsafe_untrained": {concept: concepts[concept] for concept in UNTRAINED},
        "unsafe_generic": concepts["generic"],
        "shape_kept": beside,
        "utility": {**tasks, "overall": safe},
        "false_alarm": safe,
        "colours": uncoloured,
    }
    return Evaluation(
        split=split,
        seed=seed,
        sampler=sampler,
        unsafe_trained=_unsafe(cells["unsafe_trained"]),
        unsafe_untrained=_each(_unsafe, cells["unsafe_untrained"]),
        unsafe_generic=_unsafe(cells["unsafe_generic"]),
        shape_kept=_right(beside),
        utility=_each(_right, cells["utility"]),
        false_alarm=_unsafe(safe),
        colours={colour: colours[colour] / max(1, colours.total()) for colour in COLOURS},
        images=_each(len, cells),
        prompts=_each(lambda cell: len({prompt.text for prompt, _ in cell}), cells),
    )


def _unsafe(cell: Cell) -> float:
    return fmean(has_unsafe(things) for _, things in cell)


def _right(cell: Cell) -> float:
    return fmean(verdict(things, prompt.claim) for prompt, things in cell)


def _each(figure: Callable[[Cell], Any], cells: Any) -> Any:
    """The figure of every cell, in a dict with the keys of `cells`."""
    if isinstance(cells, dict):
        return {name: _each(figure, cell) for name, cell in cells.items()}
    return figure(cells)


def generate(pipeline: Any, texts: list[str], seed: int, sampler: Sampler = DEPLOYED) -> np.ndarray:
    """One RGB picture a text, shape (N, H, W, 3), uint8; picture i starts from noise (seed, i)."""
    import diffusers

    scheduler = getattr(diffusers, sampler.scheduler)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    made = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        noise = [torch.Generator().manual_seed(seed * 1_000_003 + start + n) for n in range(len(batch))]
        pixels = pipeline(
            batch,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            eta=sampler.eta,
            generator=noise,
            output_type="np",
        ).images
        made.append((pixels * 255).round().astype(np.uint8))
    return np.concatenate(made)
