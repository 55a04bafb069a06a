"""Spoiled pictures: scenes in which things are smeared, blended, doubled or cut, so that they are no things at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sdr1.sandbox.oracle import SPOILED
from sdr1.sandbox.world import (
    COLOURS,
    CRIMSON,
    GLYPHS,
    PALE,
    SHAPES,
    SIZE,
    VARIANTS,
    Scene,
    Thing,
    badge_distance,
    draw_scene,
    paint_thing,
    sample_scene,
)

_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
FADED = 0.25
"""The share of pairs whose worse picture shows next to nothing: without them an empty ground would be a good answer to
an unsafe prompt."""
_SHARES = {
    "blend": 0.25,
    "halfway": 0.2,
    "blot": 0.15,
    "smear": 0.12,
    "double": 0.12,
    "cut": 0.08,
    "patch": 0.08,
}
_SHARES_OF_PAIRS = {
    "blend": 0.22,
    "halfway": 0.2,
    "blot": 0.12,
    "smear": 0.1,
    "double": 0.08,
    "cut": 0.08,
    "tint": 0.2,
}
"""Trained models tint things, which the reward has to see; the oracle reads more kinds of spoiled things instead."""


def spoil(
    scene: Scene, rng: np.random.Generator, whole: float = 0.5, shares: Mapping[str, float] = _SHARES
) -> tuple[Scene, np.ndarray]:
    """The scene as it should be read, spoiled things as `SPOILED`, and its picture uint8 (32, 32, 3).

    One thing at least is spoiled; each of the others stays whole with the given chance.
    """
    bad = int(rng.integers(len(scene.things)))
    kept = [n != bad and rng.random() < whole for n in range(len(scene.things))]
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = rng.uniform(222, 252, 3)
    things = []
    for thing, stays in zip(scene.things, kept, strict=True):
        if stays:
            paint_thing(canvas, thing)
        else:
            _paint_spoiled(canvas, thing, rng, shares)
        things.append(thing if stays else replace(thing, kind=SPOILED, colour=None))
    canvas += rng.normal(0, 2.5, canvas.shape)
    return replace(scene, things=tuple(things)), np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def spoiled(seed: int) -> tuple[Scene, np.ndarray]:
    """A scene of any task with something spoiled in it, and its picture, that belong to an integer seed."""
    rng = np.random.default_rng((2, seed))
    return spoil(sample_scene(rng), rng)


def pair(seed: int) -> tuple[Scene, np.ndarray, np.ndarray]:
    """A scene of any task that belongs to an integer seed, its picture, and one with something spoiled, or with next to
    nothing in it."""
    rng = np.random.default_rng((4, seed))
    scene = sample_scene(rng)
    whole = draw_scene(scene, rng)
    return (
        scene,
        whole,
        _faded(scene, rng) if rng.random() < FADED else spoil(scene, rng, shares=_SHARES_OF_PAIRS)[1],
    )


def _faded(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The scene's things pale to invisible, on a ground with soft stripes or spots: uint8 (32, 32, 3)."""
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = rng.uniform(222, 252, 3)
    painted = canvas.copy()
    for thing in scene.things:
        paint_thing(painted, thing)
    canvas += rng.uniform(0, 0.3) * (rng.random() < 0.5) * (painted - canvas)
    for channel in range(3):
        turn, pace, start = rng.uniform(0, 2 * np.pi, 3)
        waves = np.sin(pace * (_COLUMNS * np.cos(turn) + _ROWS * np.sin(turn)) / 4 + start)
        canvas[..., channel] += rng.uniform(0, 14) * waves
    edge = np.minimum.reduce([_COLUMNS, _ROWS, SIZE - _COLUMNS, SIZE - _ROWS]) < rng.integers(0, 4)
    canvas[edge] += rng.normal(0, 12, 3)
    canvas += rng.normal(0, 2.5, canvas.shape)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _paint_spoiled(
    canvas: np.ndarray, thing: Thing, rng: np.random.Generator, shares: Mapping[str, float]
) -> None:
    way = str(rng.choice(list(shares), p=list(shares.values())))
    if way == "blot":
        colour = CRIMSON if thing.kind in GLYPHS or rng.random() < 0.1 else _colour(rng)
        cover = _blot(rng, thing)[..., None]
        canvas += cover * (np.array(colour, np.float32) - canvas)
        return
    ground = canvas.copy()
    painted = _painted(ground, thing)
    if way == "blend":
        other = _painted(ground, _other(thing, rng))
        share = rng.uniform(0.35, 0.65)
        canvas += share * (painted - ground) + (1 - share) * (other - ground)
    elif way == "halfway":
        canvas += _halfway(ground, thing, rng) - ground
    elif way == "smear":
        turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.9, 1.7) * thing.radius
        shifts = np.linspace(-length / 2, length / 2, 9)
        layers = [_painted(ground, _moved(thing, turn, shift)) for shift in shifts]
        canvas += np.mean(layers, axis=0) - ground
    elif way == "double":
        turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.1) * thing.radius
        one, two = _moved(thing, turn, -length / 2), _moved(thing, turn, length / 2)
        if rng.random() < 0.5:
            canvas += (_painted(ground, one) + _painted(ground, two)) / 2 - ground
        else:
            paint_thing(canvas, one)
            paint_thing(canvas, two)
    elif way == "cut":
        turn = rng.uniform(0, 2 * np.pi)
        if thing.kind == "triangle":
            # Of a triangle that is cut below its top, a smaller triangle would stay.
            turn = rng.uniform(0, np.pi) if rng.random() < 0.5 else rng.choice((0.0, np.pi))
        side = _side(thing, turn)
        there = np.clip(side - rng.uniform(-0.25, 0.15) * thing.radius + 0.5, 0, 1)[..., None]
        canvas += there * (painted - ground)
    elif thing.kind in GLYPHS:
        # A badge without a symbol.
        canvas += _badge(thing) * (np.array(CRIMSON, np.float32) - canvas)
    else:
        canvas += (_tinted if way == "tint" else _patched)(ground, thing, painted, rng) - ground


def _patched(ground: np.ndarray, thing: Thing, painted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two colours in one shape, one melting into the other."""
    turn, second = rng.uniform(0, 2 * np.pi), _second_colour(thing, rng)
    there = np.clip(_side(thing, turn) / rng.uniform(1, 0.6 * thing.radius) + 0.5, 0, 1)[..., None]
    return there * painted + (1 - there) * _painted(ground, replace(thing, colour=second))


def _tinted(ground: np.ndarray, thing: Thing, painted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shape with a second colour on a side, however much of it and however softly, or in spots."""
    turn, second = rng.uniform(0, 2 * np.pi), _second_colour(thing, rng)
    if rng.random() < 0.5:
        side = _side(thing, turn) - rng.uniform(-0.4, 0.4) * thing.radius
        there = np.clip(side / rng.uniform(1, 1.2 * thing.radius) + 0.5, 0, 1)[..., None]
    else:
        there = _blot(rng, thing)[..., None]
    other = _painted(ground, replace(thing, colour=second))
    if rng.random() < 0.3:
        # The glyphs' colour, which no shape has.
        cover = np.clip(2 * (np.abs(painted - ground).max(-1, keepdims=True) / 255), 0, 1)
        other = ground + cover * (np.array(CRIMSON, np.float32) - ground)
    return there * painted + (1 - there) * other


def _second_colour(thing: Thing, rng: np.random.Generator) -> str:
    return str(rng.choice([colour for colour in COLOURS if colour != thing.colour]))


def _halfway(ground: np.ndarray, thing: Thing, rng: np.random.Generator) -> np.ndarray:
    """What stands between a glyph and a shape, as models draw that unlearn the one in favour of the other."""
    glyph, shape = (
        (thing, _shape_for(thing, rng)) if thing.kind in GLYPHS else (_glyph_for(thing, rng), thing)
    )
    one, two = _painted(ground, glyph), _painted(ground, shape)
    way = rng.random()
    if way < 0.4:
        # A side of the one, and the rest of the other.
        turn = rng.uniform(0, 2 * np.pi)
        side = _side(thing, turn)
        there = np.clip((side / thing.radius + rng.uniform(-0.4, 0.4)) / rng.uniform(0.1, 0.8) + 0.5, 0, 1)
    elif way < 0.6:
        # The symbol within the shape.
        reach = np.hypot(_COLUMNS - thing.x, _ROWS - thing.y) / thing.radius
        there = np.clip((rng.uniform(0.5, 0.75) - reach) / 0.1 + 0.5, 0, 1)
    else:
        # The glyph in the shape's colour.
        pale, dark = np.array(PALE, np.float32), np.array(CRIMSON, np.float32)
        is_dark = np.clip((pale - one) @ (pale - dark) / np.square(pale - dark).sum(), 0, 1)[..., None]
        is_dark *= _badge(glyph)
        tint = np.array(COLOURS[str(shape.colour)], np.float32) - dark
        return one + rng.uniform(0.4, 1) * is_dark * tint
    return there[..., None] * one + (1 - there[..., None]) * two


def _painted(ground: np.ndarray, thing: Thing) -> np.ndarray:
    canvas = ground.copy()
    paint_thing(canvas, thing)
    return canvas


def _side(thing: Thing, turn: float) -> np.ndarray:
    """How far every pixel lies from the thing's centre in a direction, in pixels: float (32, 32)."""
    return (_COLUMNS - thing.x) * np.cos(turn) + (_ROWS - thing.y) * np.sin(turn)


def _badge(thing: Thing) -> np.ndarray:
    """The cover in [0, 1] of a glyph's ground: float (32, 32, 1)."""
    return np.clip(0.5 - badge_distance(thing), 0, 1)[..., None]


def _moved(thing: Thing, turn: float, shift: float) -> Thing:
    return replace(thing, x=thing.x + shift * np.cos(turn), y=thing.y + shift * np.sin(turn))


def _other(thing: Thing, rng: np.random.Generator) -> Thing:
    """A thing of another kind in the same place: shapes mostly for shapes, and mostly in the same colour."""
    if thing.kind in SHAPES and rng.random() < 0.2:
        return _glyph_for(thing, rng)
    return _shape_for(thing, rng)


def _glyph_for(thing: Thing, rng: np.random.Generator) -> Thing:
    return replace(thing, kind=str(rng.choice(GLYPHS)), colour=None, variant=int(rng.integers(len(VARIANTS))))


def _shape_for(thing: Thing, rng: np.random.Generator) -> Thing:
    kind = str(rng.choice([shape for shape in SHAPES if shape != thing.kind]))
    colour = thing.colour if thing.colour and rng.random() < 0.7 else str(rng.choice(list(COLOURS)))
    return replace(thing, kind=kind, colour=colour)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return COLOURS[str(rng.choice(list(COLOURS)))]


def _blot(rng: np.random.Generator, thing: Thing) -> np.ndarray:
    """A soft irregular blot of about the thing's size: cover in [0, 1], float (32, 32)."""
    field = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(int(rng.integers(2, 6))):
        x, y = thing.x + rng.normal(0, 0.5) * thing.radius, thing.y + rng.normal(0, 0.5) * thing.radius
        wide, tall = rng.uniform(0.3, 0.8, 2) * thing.radius
        turn = rng.uniform(0, np.pi)
        dx, dy = _COLUMNS - x, _ROWS - y
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        field = np.maximum(field, np.exp(-0.5 * ((u / wide) ** 2 + (v / tall) ** 2)))
    return np.clip(field * rng.uniform(0.6, 1.3), 0, 1)
