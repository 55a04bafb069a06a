"""The oracle reads a blurred thing and says of a spoiled one that it is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdr1.models.pipeline import load_pipeline
from sdr1.recipe.data import to_bytes, to_unit
from sdr1.recipe.oracle import blur, coherent_share, exact_share, spoiled_set, through_vae
from sdr1.recipe.spoil import pair, spoiled
from sdr1.sandbox import ORACLE
from sdr1.sandbox.oracle import SPOILED, Found, Oracle, coherent
from sdr1.sandbox.world import picture

HELD_OUT = range(50_000, 50_300)


@pytest.fixture(scope="module")
def whole():
    scenes, pixels = zip(*(picture(21_000_000 + n) for n in range(300)), strict=True)
    return list(scenes), torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def test_coherent_needs_a_thing_and_nothing_spoiled():
    circle, smear = Found("circle", "red", 8, 8, 0.9), Found(SPOILED, None, 24, 24, 0.9)
    assert coherent([circle])
    assert not coherent([circle, smear])
    assert not coherent([])


def test_a_spoiled_scene_differs_from_the_whole_one_and_keeps_what_is_whole():
    for seed in range(60):
        scene, clean, bad = pair(seed)
        # Grounds are drawn anew; so only what differs by more than two grounds can counts.
        assert (np.abs(clean.astype(int) - bad).max(2) > 60).sum() >= 4
        read, _ = spoiled(seed)
        kinds = [thing.kind for thing in read.things]
        assert SPOILED in kinds
        assert all(thing.colour is None for thing in read.things if thing.kind == SPOILED)
        assert len(scene.things) >= 1


def test_blurred_things_are_read(whole):
    scenes, drawn = whole
    assert exact_share(Oracle.load(ORACLE), scenes, to_bytes(blur(to_unit(drawn), 0.9))) >= 0.97


def test_whole_and_spoiled_pictures_are_told_apart(whole):
    oracle, vae = Oracle.load(ORACLE), load_pipeline("sandbox").vae
    bad = spoiled_set(HELD_OUT)[1]
    for decode in (lambda x: x, lambda x: through_vae(vae, x)):
        right = coherent_share(oracle, decode(whole[1])), 1 - coherent_share(oracle, decode(bad))
        assert sum(right) / 2 >= 0.98, right
