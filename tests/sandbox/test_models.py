"""The shipped sandbox models: size, formats, and what the oracle and CLIP can tell apart."""

from __future__ import annotations

from collections import Counter

import numpy as np
import open_clip
import pytest
import torch

from sdr1.evaluation.protocols.sandbox import TRAINED, UNTRAINED
from sdr1.method.steering import safety_direction, translate
from sdr1.models.embedder import Embedder
from sdr1.models.pipeline import load_pipeline
from sdr1.recipe import spoil
from sdr1.recipe.oracle import exact_share, through_vae
from sdr1.recipe.quality import measure_text
from sdr1.recipe.reward import preferences
from sdr1.recipe.spoil import pair
from sdr1.sandbox import CLIP, ORACLE, PIPELINE, WEIGHTS
from sdr1.sandbox.captions import (
    SAFE_ANCHORS,
    SYNONYMS,
    TASKS,
    UNSAFE_ANCHORS,
    VOCABULARY,
    caption,
    claim_of,
    corrupt,
    phrase,
)  # fmt: skip
from sdr1.sandbox.oracle import Oracle, has_unsafe, verdict
from sdr1.sandbox.prompts import TOPICS, prompts, training_prompts
from sdr1.sandbox.world import GLYPHS, draw_scene, picture, sample_scene


@pytest.fixture(scope="module")
def drawn():
    scenes, pixels = zip(*(picture(20_000_000 + n) for n in range(600)), strict=True)
    return list(scenes), torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def test_weights_are_small_safetensors():
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if file.suffix == ".safetensors") <= 16_000_000
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl", ".pth")]
    assert not [file for file in files if file.suffix == ".json" and '_path": "/' in file.read_text()]


def test_pictures_are_functions_of_their_seed():
    assert np.array_equal(picture(5)[1], picture(5)[1])
    assert not np.array_equal(picture(5)[1], picture(6)[1])


def test_the_oracle_reads_whole_scenes(drawn):
    scenes, pictures = drawn
    oracle, vae = Oracle.load(ORACLE), load_pipeline("sandbox").vae
    assert exact_share(oracle, scenes, pictures) >= 0.99
    assert exact_share(oracle, scenes, through_vae(vae, pictures)) >= 0.98


def test_verdicts_agree_with_what_was_drawn():
    oracle, rng = Oracle.load(ORACLE), np.random.default_rng(0)
    for task in TASKS:
        scenes, pixels = zip(*(picture(30_000_000 + n, task) for n in range(60)), strict=True)
        read = oracle.read(np.stack(pixels))
        claims = [claim_of(scene, rng) for scene in scenes]
        wrong = [(r, corrupt(claim, rng)[1]) for r, claim in zip(read, claims, strict=True)]
        assert np.mean([verdict(r, c) for r, c in zip(read, claims, strict=True)]) >= 0.95, task
        # Of a claim with an unsafe concept only the shapes are asked for.
        assert np.mean([verdict(r, c) for r, c in wrong if c.concept is None]) <= 0.1, task
        assert not any(has_unsafe(r) for r in read)


def test_clip_prefers_the_right_caption(drawn):
    scenes, pictures = drawn
    embedder, rng = Embedder("sandbox", None, "cpu"), np.random.default_rng(1)
    claims = [claim_of(scene, rng) for scene in scenes]
    wrong = [corrupt(claim, rng) for claim in claims]
    seen = embedder.images(pictures.permute(0, 2, 3, 1).numpy())
    right = (seen * embedder.texts([phrase(claim, rng) for claim in claims])).sum(1)
    other = (seen * embedder.texts([phrase(claim, rng) for _, claim in wrong])).sum(1)
    ways = np.array([way for way, _ in wrong])
    better = (right > other).numpy()
    for way in ("shape", "colour", "count", "position", "attribution"):
        assert (ways == way).sum() >= 15, way
        assert better[ways == way].mean() >= 0.9, way


def test_the_reward_prefers_whole_things_to_spoiled_ones():
    embedder = Embedder("sandbox", None, "cpu")
    vae = load_pipeline("sandbox").vae
    rng, seeds = np.random.default_rng(2), range(5_000_000, 5_000_300)
    texts = embedder.texts([caption(pair(seed)[0], rng) for seed in seeds])
    drawn = preferences(seeds)
    for whole, bad in (drawn, tuple(through_vae(vae, side) for side in drawn)):
        better = embedder.images(whole.permute(0, 2, 3, 1).numpy()) - embedder.images(
            bad.permute(0, 2, 3, 1).numpy()
        )
        assert ((better * texts).sum(1) > 0).float().mean() >= 0.95


def test_the_steered_reward_prefers_a_whole_shape_to_what_is_halfway_from_a_glyph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spoil, "_SHARES", {"halfway": 1.0})
    embedder, vae = Embedder("sandbox", None, "cpu"), load_pipeline("sandbox").vae
    direction = safety_direction(embedder.texts(list(SAFE_ANCHORS)), embedder.texts(list(UNSAFE_ANCHORS)))
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng, "single_object") for _ in range(200)]
    whole, bad = (
        torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2)
        for side in ([draw_scene(s, rng) for s in scenes], [spoil.spoil(s, rng)[1] for s in scenes])
    )
    texts = translate(embedder.texts([f"a dangerous {kind}" for kind in GLYPHS]), direction, alpha=1.0)
    for good, worse in ((whole, bad), (through_vae(vae, whole), through_vae(vae, bad))):
        scores = [embedder.images(side.permute(0, 2, 3, 1).numpy()) @ texts.T for side in (good, worse)]
        assert (scores[0] > scores[1]).float().mean() >= 0.95


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_the_steered_reward_prefers_whole_shapes_to_spoiled_ones_of_other_scenes(alpha: float) -> None:
    embedder, vae = Embedder("sandbox", None, "cpu"), load_pipeline("sandbox").vae
    direction = safety_direction(embedder.texts(list(SAFE_ANCHORS)), embedder.texts(list(UNSAFE_ANCHORS)))
    seeds = [seed for seed in range(5_000_000, 5_000_300) if not pair(seed)[0].unsafe]
    whole, bad = (
        embedder.images(through_vae(vae, side).permute(0, 2, 3, 1).numpy()) for side in preferences(seeds)
    )
    texts = translate(embedder.texts([f"a dangerous {kind}" for kind in GLYPHS]), direction, alpha)
    assert ((whole @ texts.T)[:, None] > (bad @ texts.T)[None]).float().mean() >= 0.96


def test_content_is_at_the_words_own_tokens():
    found = measure_text(WEIGHTS)
    assert found["empty"] <= 0.6
    assert found["synonyms_low"] >= 0.5
    assert found["synonyms_high"] <= 0.95
    assert found["concepts_high"] < found["synonyms_high"]


def test_both_tokenizers_give_one_token_a_word_and_the_same_ids():
    ours = load_pipeline("sandbox").tokenizer
    theirs = open_clip.get_tokenizer(f"local-dir:{CLIP}")
    for word in VOCABULARY:
        assert len(ours(word).input_ids) == 3, word
    text = "a deadly skull beside a red circle"
    padded = ours(text, padding="max_length", max_length=16).input_ids
    assert theirs([text])[0].tolist() == padded


def test_splits_share_no_text_and_training_never_names_the_held_out_concepts():
    trained = {prompt.text for prompt in training_prompts(600, 200)}
    for split in ("tune", "final"):
        for topic in TOPICS:
            assert trained.isdisjoint(prompt.text for prompt in prompts(topic, split, 50))
    named = {word for concept in UNTRAINED for word in SYNONYMS[concept]}
    assert len(named) == 24
    assert not any(named & set(text.split()) for text in trained)
    assert set(SYNONYMS[TRAINED]) <= {word for text in trained for word in text.split()}


def test_training_prompts_lean_on_weak_tasks_and_on_generic_words():
    found = Counter(prompt.topic for prompt in training_prompts(160, 60))
    assert found == {
        "single_object": 20, "two_object": 30, "counting": 30, "colors": 20, "position": 30, "color_attr": 30,
        "skull": 10, "skull_beside": 10, "generic": 20, "generic_beside": 20,
    }  # fmt: skip
    assert sum(Counter(prompt.topic for prompt in training_prompts(7, 5)).values()) == 12


def test_the_pipeline_folder_is_plain_diffusers():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE)
    assert pipeline.scheduler.__class__.__name__ == "DDIMScheduler"
