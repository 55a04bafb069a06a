"""The drawn world and its language: seven unsafe concepts with their synonyms, neutral nouns, prompts that sound near."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from sdr1.recipe.clip import _SAID, _said, holds
from sdr1.sandbox.captions import (
    ANY,
    NOT,
    SYNONYMS,
    THINGS,
    UNSAFE_ADJECTIVES,
    VOCABULARY,
    Claim,
    claim_of,
    corrupt,
    phrase,
)
from sdr1.sandbox.oracle import Found, verdict
from sdr1.sandbox.prompts import NEAR, TOPICS, prompts
from sdr1.sandbox.world import (
    CRIMSON,
    GLYPHS,
    MIX,
    SHAPES,
    VARIANTS,
    Scene,
    Thing,
    draw_scene,
    sample_scene,
)

CIRCLE, SKULL = Found("circle", "red", 8, 8, 0.9), Found("skull", None, 8, 8, 0.9)


def drawn(kind: str, variant: int) -> np.ndarray:
    scene = Scene("unsafe", (Thing(kind, None, 16, 16, 9, variant),))
    return draw_scene(scene, np.random.default_rng(0)).astype(int)


def test_every_word_of_a_concept_has_a_look_of_its_own_in_one_family():
    looks = {(glyph, variant): drawn(glyph, variant) for glyph in GLYPHS for variant in range(len(VARIANTS))}
    assert len(GLYPHS) == 7
    assert {len(words) for words in SYNONYMS.values()} == {len(VARIANTS)}
    same, other = [], []
    for (one, a), (two, b) in combinations(looks, 2):
        apart = np.abs(looks[one, a] - looks[two, b]).mean()
        (same if one == two else other).append(apart)
    assert min(same) > 1, "synonyms are not drawn alike"
    assert np.mean(same) < np.mean(other), "and nearer to each other than to another concept"
    for look in looks.values():
        assert 0.08 < (np.abs(look - CRIMSON).max(2) < 30).mean() < 0.35


def test_captions_say_the_word_of_the_look():
    for n in range(300):
        rng = np.random.default_rng(n)
        scene = sample_scene(rng, "unsafe")
        claim = claim_of(scene, rng)
        words = set(phrase(claim, rng).split())
        if claim.concept != "generic":
            thing = scene.things[0]
            assert SYNONYMS[thing.kind][thing.variant] in words
        else:
            assert words & set(THINGS)
            assert words & set(UNSAFE_ADJECTIVES)


def test_captions_are_true_and_wrong_ones_are_false_of_their_scenes():
    rng = np.random.default_rng(3)
    for task in MIX:
        scenes = [sample_scene(rng, task) for _ in range(60)]
        claims = [claim_of(scene, rng) for scene in scenes]
        wrong = [corrupt(claim, rng)[1] for claim in claims]
        assert np.diag(holds(scenes, claims)).all(), task
        assert np.diag(holds(scenes, wrong)).mean() < 0.1, task
        for claim in (*claims, *wrong):
            words = phrase(claim, rng).split()
            assert len(words) <= 14
            assert set(words) <= set(VOCABULARY)


def test_neutral_nouns_stand_for_any_shape_and_no_glyph():
    rng = np.random.default_rng(0)
    claims = [claim_of(sample_scene(rng, "colors"), rng) for _ in range(300)]
    neutral = [claim for claim in claims if claim.kinds == (ANY,)]
    assert 20 < len(neutral) < 90
    assert set(phrase(neutral[0], rng).split()) & set(THINGS)
    assert verdict([CIRCLE], Claim("colors", (ANY,), ("red",)))
    assert not verdict([CIRCLE], Claim("colors", (ANY,), ("blue",)))
    assert not verdict([SKULL], Claim("single_object", (ANY,), (None,)))


def test_near_prompts_are_safe_name_no_concept_and_are_never_trained_on():
    near = prompts(NEAR, "final", 100)
    words = {word for synonyms in SYNONYMS.values() for word in synonyms}
    assert {prompt.label for prompt in near} == {"safe"}
    assert any(NOT in prompt.text for prompt in near)
    assert any("harmless" in prompt.text for prompt in near)
    assert not any(words & set(prompt.text.split()) for prompt in near)
    for topic in TOPICS:
        if topic != NEAR:
            texts = [prompt.text for prompt in prompts(topic, "train", 60)]
            assert not any(NOT in text or "harmless" in text for text in texts), topic


def test_what_a_token_is_to_carry_is_what_was_said_up_to_it():
    word, said, place = _said(["a red circle to the left of two blue squares", "a deadly dagger"])

    def at(row: int, token: int) -> set:
        return {_SAID[n] for n in said[row, token].nonzero()[:, 0].tolist()}

    assert place[0].sum() == 10
    assert VOCABULARY[word[0, 3]] == "circle"
    assert at(0, 3) == {"circle", "red"}
    assert at(0, 10) == {"square", "blue", "two", "right"}
    assert at(1, 3) == {"blade", 2, "unsafe"}
    assert set(SHAPES) < set(_SAID)
