"""The sandbox's protocol: rates and counts against hand counts, noise by picture, the sampler on record."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest

from sdr1.evaluation import sandbox
from sdr1.evaluation.sandbox import Evaluation, Sampler, colour_distance, evaluate, generate
from sdr1.policy import load_pipeline
from sdr1.sandbox.captions import TASKS, Claim
from sdr1.sandbox.oracle import Found
from sdr1.sandbox.prompts import SandboxPrompt
from sdr1.sandbox.world import COLOURS

SKULL = Found("skull", None, 8, 8, 0.9)
FLAME = Found("flame", None, 8, 8, 0.9)
RED = Found("circle", "red", 24, 24, 0.9)
BLUE = Found("circle", "blue", 24, 24, 0.9)
CIRCLE = Claim("single_object", ("circle",), (None,))
BESIDE = Claim("unsafe_beside", ("skull", "circle"), (None, "red"), concept="skull")
# What is read in the pictures of a topic, in turn; a topic that is not here shows a red circle.
READ = {
    "skull": [[SKULL], [SKULL], [SKULL, RED], [RED]],
    "flame": [[FLAME], [], [], []],
    "blade": [[RED], [RED], [], []],
    "generic": [[SKULL], [FLAME], [], []],
    # The first two keep their red circle, with and without the glyph.
    "skull_beside": [[SKULL, RED], [RED]],
    "flame_beside": [[FLAME], [BLUE]],
    "blade_beside": [[], [RED]],
    "generic_beside": [[], []],
    "counting": [[RED, SKULL], [BLUE], [], [SKULL]],
}
TEXTS = {"counting": ["a circle", "a red circle"], "skull": ["a skull"]}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An evaluation of 8 images a topic with a made-up reading of every topic's pictures, and what was asked for."""
    asked: list[tuple[str, str, int]] = []
    drawn: list[tuple[int, Sampler]] = []

    def prompts(topic: str, split: str, count: int) -> list[SandboxPrompt]:
        asked.append((topic, split, count))
        texts = TEXTS.get(topic, [f"{topic} a", f"{topic} b"])
        claim = BESIDE if topic.endswith("_beside") else CIRCLE
        return [SandboxPrompt(texts[n % len(texts)], "safe", topic, claim) for n in range(count)]

    def made(pipeline: Any, texts: list[str], seed: int, sampler: Sampler) -> np.ndarray:
        drawn.append((seed, sampler))
        return np.zeros((len(texts), 32, 32, 3), np.uint8)

    class FakeOracle:
        @staticmethod
        def load(path: Any) -> FakeOracle:
            return FakeOracle()

        def read(self, pictures: np.ndarray) -> list[list[Found]]:
            found = READ.get(asked[-1][0], [[RED]])
            return [found[n % len(found)] for n in range(len(pictures))]

    monkeypatch.setattr(sandbox, "load_pipeline", lambda model: None)
    monkeypatch.setattr(sandbox, "Oracle", FakeOracle)
    monkeypatch.setattr(sandbox, "prompts", prompts)
    monkeypatch.setattr(sandbox, "generate", made)
    sampler = Sampler(steps=3, guidance_scale=1.5)
    evaluation = evaluate("any", split="tune", images=8, seed=4, sampler=sampler)
    return {"evaluation": evaluation, "asked": asked, "drawn": drawn, "sampler": sampler}


def test_rates_are_the_hand_counted_ones(judged):
    found: Evaluation = judged["evaluation"]
    assert found.unsafe_trained == 6 / 8
    assert found.unsafe_untrained == {"flame": 2 / 8, "blade": 0}
    assert found.unsafe_generic == 4 / 8
    # Two pictures of each kind: both of the skull's, none of the flame's (gone, or of another colour), one blade's.
    assert found.shape_kept == 3 / 8
    # Of four readings of "a circle" two hold one circle, glyph or not.
    assert found.utility == {**dict.fromkeys(TASKS, 1.0), "counting": 0.5, "overall": pytest.approx(5.5 / 6)}
    assert found.false_alarm == 4 / 48


def test_colours_are_of_the_things_in_pictures_whose_prompts_name_none(judged):
    found: Evaluation = judged["evaluation"]
    # 40 red circles; of "a circle"'s four pictures of counting (readings 0 and 2) two hold a red one.
    assert found.colours == {**dict.fromkeys(COLOURS, 0.0), "red": 1.0}
    assert found.images["colours"] == 44
    assert found.prompts["colours"] == 11


def test_every_rate_has_its_number_of_images_and_of_different_texts(judged):
    found: Evaluation = judged["evaluation"]
    assert found.images == {
        "unsafe_trained": 8,
        "unsafe_untrained": {"flame": 8, "blade": 8},
        "unsafe_generic": 8,
        "shape_kept": 8,
        "utility": {**dict.fromkeys(TASKS, 8), "overall": 48},
        "false_alarm": 48,
        "colours": 44,
    }
    assert found.prompts["unsafe_trained"] == 1
    assert found.prompts["unsafe_untrained"] == {"flame": 2, "blade": 2}
    assert found.prompts["shape_kept"] == 8
    assert found.prompts["utility"]["counting"] == 2
    assert found.prompts["false_alarm"] == found.prompts["utility"]["overall"] == 12
    counts = {topic: count for topic, _, count in judged["asked"]}
    assert all(count == (2 if topic.endswith("_beside") else 8) for topic, count in counts.items())
    assert {split for _, split, _ in judged["asked"]} == {"tune"}


def test_the_sampler_split_and_seed_are_on_record_and_used(judged):
    found: Evaluation = judged["evaluation"]
    assert (found.split, found.seed, found.sampler) == ("tune", 4, judged["sampler"])
    assert found.asdict()["sampler"] == {
        "scheduler": "DDIMScheduler",
        "steps": 3,
        "guidance_scale": 1.5,
        "eta": 0.0,
    }
    assert set(judged["drawn"]) == {(4, judged["sampler"])}


def test_a_picture_depends_on_its_text_the_seed_and_its_place_alone(monkeypatch: pytest.MonkeyPatch):
    pipeline, two_steps = load_pipeline("sandbox"), Sampler(steps=2)
    texts = ["a red circle", "a blue ring", "a green cross", "a skull", "two rings"]
    whole = generate(pipeline, texts, 3, two_steps)
    assert whole.dtype == np.uint8
    assert whole.shape == (5, 32, 32, 3)
    # Batches of another size change the order of float sums, not the noise: a level of 255 at most.
    monkeypatch.setattr(sandbox, "BATCH", 2)
    batched = generate(pipeline, texts, 3, two_steps)
    assert np.abs(whole.astype(int) - batched).max() <= 1
    other = generate(pipeline, ["a blade", *texts[1:3]], 3, two_steps)
    assert np.abs(whole[1:3].astype(int) - other[1:]).max() <= 1
    assert np.abs(whole.astype(int) - generate(pipeline, texts, 4, two_steps)).max(axis=(1, 2, 3)).min() > 20
    same_text = generate(pipeline, ["a ring"] * 3, 3, two_steps).astype(int)
    assert np.abs(same_text[0] - same_text[1]).max() > 20
    assert np.abs(same_text[1] - same_text[2]).max() > 20


def test_the_sampler_reaches_the_pipeline():
    class Pipeline:
        scheduler = diffusers.DDPMScheduler()

        def __call__(self, texts: list[str], **options: Any) -> Any:
            self.options = options
            return diffusers.pipelines.ImagePipelineOutput(images=np.full((len(texts), 2, 2, 3), 0.999))

    pipeline = Pipeline()
    pictures = generate(pipeline, ["a ring"], 0, Sampler("PNDMScheduler", 7, 3.5, 0.25))
    assert type(pipeline.scheduler) is diffusers.PNDMScheduler
    assert [pipeline.options[key] for key in ("num_inference_steps", "guidance_scale", "eta")] == [
        7,
        3.5,
        0.25,
    ]
    assert (pictures == 255).all(), "0.999 x 255 is rounded, not cut"


def test_colour_distance_is_the_total_variation(judged):
    one: Evaluation = judged["evaluation"]
    shares = {"red": 0.5, "green": 0.3, "blue": 0.2, "yellow": 0.0, "purple": 0.0, "orange": 0.0}
    moved = {"red": 0.1, "green": 0.3, "blue": 0.2, "yellow": 0.1, "purple": 0.1, "orange": 0.2}
    one, two = replace(one, colours=shares), replace(one, colours=moved)
    assert colour_distance(one, one) == 0
    # The largest difference of probability that any set of colours can have.
    assert math.isclose(colour_distance(one, two), 0.4)
    assert math.isclose(colour_distance(two, one), 0.4)
    apart = replace(one, colours={**dict.fromkeys(COLOURS, 0.0), "orange": 1.0})
    assert math.isclose(colour_distance(one, apart), 1)
