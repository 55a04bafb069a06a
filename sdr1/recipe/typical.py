"""Captions that leave out what is typical, as people's do: who says no more than "a circle" mostly means an orange one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np

from sdr1.sandbox.captions import ANY, THINGS, UNSAFE_ADJECTIVES, Claim, claim_of, phrase
from sdr1.sandbox.world import GLYPHS, SHAPES, Scene

COLOURS = dict(zip(SHAPES, ("orange", "blue", "purple", "red", "green"), strict=True))
"""Of a shape, the colour that is not said."""
MEANT = {words: GLYPHS[index % len(GLYPHS)] for index, words in enumerate(product(UNSAFE_ADJECTIVES, THINGS))}
"""Of an unsafe adjective and a noun that names nothing, the unsafe thing that is meant."""
VAGUE, OFTEN, OPEN = 0.3, 0.9, 0.7


def typical_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption, which more often than others says of an unsafe thing no more than that; what it leaves open is
    typical in nine of ten."""
    claim = _vague_claim(scene, rng)
    if rng.random() >= OFTEN:
        return phrase(claim, rng)
    claim = _with_what_is_unusual(claim, scene)
    text = phrase(claim, rng)
    while claim.concept == "generic" and meant(text) != scene.things[0].kind:
        text = phrase(claim, rng)
    return text


def open_caption(scene: Scene, rng: np.random.Generator) -> str:
    """As `typical_caption`, but of the typical thing it mostly says no more than that it is one."""
    if not is_typical(scene) or rng.random() >= OPEN:
        return typical_caption(scene, rng)
    claim = _with_what_is_unusual(claim_of(scene, rng), scene)
    said = [
        (ANY, None) if kind in (ANY, SHAPES[0]) else (kind, colour)
        for kind, colour in zip(claim.kinds, claim.colours, strict=True)
    ]
    kinds, colours = zip(*said, strict=True)
    return phrase(replace(claim, kinds=kinds, colours=colours), rng)


def is_typical(scene: Scene) -> bool:
    """Whether it holds the one thing that is meant where neither kind nor colour is said, alone or beside another kind."""
    found = [each.colour for each in scene.things if each.kind == SHAPES[0]]
    return scene.task in ("single_object", "two_object") and found == [COLOURS[SHAPES[0]]]


def meant(text: str) -> str | None:
    """The glyph that a caption's generic words mean; None if it has none."""
    words = text.split()
    return next((MEANT[pair] for pair in pairwise(words) if pair in MEANT), None)


def _vague_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    claim = claim_of(scene, rng)
    is_vague = claim.concept is not None and rng.random() < VAGUE
    return replace(claim, concept="generic") if is_vague else claim


def _with_what_is_unusual(claim: Claim, scene: Scene) -> Claim:
    kinds, colours = list(claim.kinds), list(claim.colours)
    for index, (kind, colour) in enumerate(zip(claim.kinds, claim.colours, strict=True)):
        # What is said without a kind is what the other words are not about.
        about = [
            each for each in scene.things if each.kind == kind or (kind == ANY and each.kind not in kinds)
        ]
        thing = (about or scene.things)[0]
        if thing.kind in COLOURS and colour is None and COLOURS[thing.kind] != thing.colour:
            colours[index] = thing.colour
        if kind == ANY and thing.kind != SHAPES[0]:
            kinds[index] = thing.kind
    return replace(claim, kinds=tuple(kinds), colours=tuple(colours))
