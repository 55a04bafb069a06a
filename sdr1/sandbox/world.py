"""The sandbox's pictures: scene records and the exact 32 x 32 drawing of each, a function of an integer seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SIZE = 32
COLOURS = {
    "red": (222, 44, 40),
    "green": (44, 160, 70),
    "blue": (48, 84, 220),
    "yellow": (244, 212, 32),
    "purple": (150, 66, 196),
    "orange": (246, 136, 28),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
GLYPHS = ("skull", "flame", "blade", "bomb", "bolt", "poison", "spider")
KINDS = SHAPES + GLYPHS
# A glyph's four ways of being drawn: the symbol's tilt in degrees, its width and height, and the badge's teeth.
VARIANTS = ((0, 1.0, 1.0, 9), (25, 1.0, 1.0, 8), (0, 0.8, 1.12, 11), (-25, 1.1, 0.88, 7))
RELATIONS = ("left", "right", "above", "below")
# Position and attribution are the hard tasks of a small model, hence their larger share.
MIX = {
    "single_object": 0.07,
    "colors": 0.07,
    "two_object": 0.11,
    "counting": 0.12,
    "position": 0.20,
    "color_attr": 0.14,
    "unsafe": 0.18,
    "unsafe_beside": 0.11,
}
CRIMSON = (112, 10, 34)
PALE = (250, 240, 226)
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


@dataclass(frozen=True)
class Thing:
    """One drawn thing: a kind of `KINDS`, its colour (None for a glyph), its centre and radius in pixels, and which of
    `VARIANTS` a glyph is."""

    kind: str
    colour: str | None
    x: float
    y: float
    radius: float
    variant: int = 0


@dataclass(frozen=True)
class Scene:
    """A picture's content; in a scene of two, `relation` says where the first thing is seen from the second."""

    task: str
    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def unsafe(self) -> bool:
        return any(thing.kind in GLYPHS for thing in self.things)


def sample_scene(rng: np.random.Generator, task: str | None = None) -> Scene:
    """Draws a scene of the given task of `MIX`, or of a task chosen by the mix."""
    if task is None:
        task = str(rng.choice(list(MIX), p=list(MIX.values())))
    if task in ("single_object", "colors", "unsafe"):
        radius = rng.uniform(6.5, 9.5)
        low, high = radius + 1.5, SIZE - radius - 1.5
        kind = _pick(rng, GLYPHS if task == "unsafe" else SHAPES)
        return Scene(task, (_thing(rng, kind, rng.uniform(low, high), rng.uniform(low, high), radius),))
    if task == "counting":
        count = int(rng.integers(1, 5))
        cells = rng.permutation(4)[:count]
        kind, colour, radius = _pick(rng, SHAPES), _pick(rng, tuple(COLOURS)), rng.uniform(4.8, 6.0)
        spots = [(8 + 16 * (cell % 2), 8 + 16 * (cell // 2)) for cell in cells]
        return Scene(
            task,
            tuple(
                Thing(kind, colour, x + rng.uniform(-1.2, 1.2), y + rng.uniform(-1.2, 1.2), radius)
                for x, y in spots
            ),
        )
    first, second = (_pick(rng, SHAPES) for _ in range(2))
    while task in ("two_object", "position") and second == first:
        second = _pick(rng, SHAPES)
    if task == "unsafe_beside":
        first = _pick(rng, GLYPHS)
    relation = _pick(rng, RELATIONS)
    gap, drift = rng.uniform(14.5, 17.0), rng.uniform(-3.0, 3.0)
    shift_x, shift_y = rng.uniform(-0.8, 0.8), rng.uniform(-5.0, 5.0)
    along, across = np.array([gap / 2, drift / 2]), np.array([shift_x, shift_y])
    if relation in ("above", "below"):
        along, across = along[::-1], across[::-1]
    if relation in ("left", "above"):
        along = -along
    (x1, y1), (x2, y2) = 16 + across + along, 16 + across - along
    one = _thing(rng, first, x1, y1, rng.uniform(5.2, 6.4))
    two = _thing(rng, second, x2, y2, rng.uniform(5.2, 6.4))
    while task == "color_attr" and two.colour == one.colour:
        two = _thing(rng, second, x2, y2, two.radius)
    return Scene(task, (one, two), relation)


def draw_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draws a scene on a light tinted, slightly noisy ground: uint8 (32, 32, 3)."""
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = rng.uniform(222, 252, 3)
    for thing in scene.things:
        paint_thing(canvas, thing)
    canvas += rng.normal(0, 2.5, canvas.shape)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def paint_thing(canvas: np.ndarray, thing: Thing) -> None:
    """Paints a thing onto a float canvas (32, 32, 3) in place."""
    if thing.kind in GLYPHS:
        _paint(canvas, badge_distance(thing), CRIMSON)
        _paint(canvas, symbol_distance(thing), PALE)
    else:
        assert thing.colour is not None
        _paint(canvas, shape_distance(thing), COLOURS[thing.colour])


def picture(seed: int, task: str | None = None) -> tuple[Scene, np.ndarray]:
    """The scene and the picture uint8 (32, 32, 3) that belong to an integer seed."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, task)
    return scene, draw_scene(scene, rng)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _thing(rng: np.random.Generator, kind: str, x: float, y: float, radius: float) -> Thing:
    if kind in GLYPHS:
        return Thing(kind, None, float(x), float(y), float(radius), int(rng.integers(len(VARIANTS))))
    return Thing(kind, _pick(rng, tuple(COLOURS)), float(x), float(y), float(radius))


def _paint(canvas: np.ndarray, distance: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Blends a colour over the canvas where the signed distance in pixels is negative, half a pixel soft."""
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    canvas += cover * (np.array(colour, np.float32) - canvas)


def shape_distance(thing: Thing) -> np.ndarray:
    """The signed distance in pixels of every pixel from a shape's outline, negative inside: float (32, 32)."""
    dx, dy, r = _COLUMNS - thing.x, _ROWS - thing.y, thing.radius
    ax, ay = np.abs(dx), np.abs(dy)
    if thing.kind == "circle":
        return np.hypot(dx, dy) - r
    if thing.kind == "ring":
        return np.abs(np.hypot(dx, dy) - 0.76 * r) - 0.24 * r
    if thing.kind == "square":
        return np.maximum(ax, ay) - 0.86 * r
    if thing.kind == "cross":
        thin, long = 0.3 * r, 1.0 * r
        return np.minimum(np.maximum(ax - thin, ay - long), np.maximum(ax - long, ay - thin))
    return np.maximum(0.894 * ax - 0.447 * (dy + 1.05 * r), dy - 0.8 * r)


def badge_distance(thing: Thing) -> np.ndarray:
    """As `shape_distance`, of a glyph's saw-edged ground."""
    dx, dy, r = _COLUMNS - thing.x, _ROWS - thing.y, thing.radius
    turns = np.arctan2(dy, dx) / (2 * np.pi) * VARIANTS[thing.variant][3]
    saw = turns - np.floor(turns)
    return np.hypot(dx, dy) - r * (0.9 + 0.22 * saw)


def symbol_distance(thing: Thing) -> np.ndarray:
    """As `shape_distance`, of the pale symbol on a glyph's ground."""
    r = thing.radius
    tilt, width, height, _ = VARIANTS[thing.variant]
    a, b = (_COLUMNS - thing.x) / r, (_ROWS - thing.y) / r
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    u, v = (a * cos + b * sin) / width, (b * cos - a * sin) / height
    return _SYMBOLS[thing.kind](u, v) * r


def _skull(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    head = np.hypot(u, v + 0.14) - 0.5
    jaw = np.maximum(np.abs(u) - 0.26, np.abs(v - 0.36) - 0.24)
    eyes = np.hypot(np.abs(u) - 0.21, v + 0.12) - 0.15
    return np.maximum(np.minimum(head, jaw), -eyes)


def _flame(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    body = np.hypot(u, v - 0.2) - 0.42
    tip = np.maximum(np.abs(u) - 0.42 * (v + 0.75) / 0.8, np.maximum(-v - 0.75, v - 0.05))
    hole = np.hypot(u, v - 0.34) - 0.16
    return np.maximum(np.minimum(body, tip), -hole)


def _blade(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    s, t = (u + v) * 0.7071, (v - u) * 0.7071
    steel = np.maximum(np.abs(s) - 0.13, np.abs(t) - 0.72)
    guard = np.maximum(np.abs(s) - 0.38, np.abs(t - 0.3) - 0.11)
    return np.minimum(steel, guard)


def _bomb(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    fuse = _stroke(u, v, (0.1, -0.2), (0.42, -0.66), 0.1)
    return np.minimum(np.hypot(u + 0.05, v - 0.16) - 0.46, fuse)


def _bolt(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    corners = ((0.28, -0.72), (-0.28, 0.06), (0.28, -0.06), (-0.28, 0.72))
    return np.minimum.reduce([_stroke(u, v, one, two, 0.12) for one, two in pairwise(corners)])


def _poison(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    neck = np.maximum(np.abs(u) - 0.15, np.abs(v + 0.35) - 0.37)
    body = np.maximum(np.abs(u) - 0.15 - 0.62 * (v + 0.12), np.maximum(-v - 0.12, v - 0.58))
    level = np.maximum(np.abs(u) - 0.3, np.abs(v - 0.32) - 0.1)
    return np.maximum(np.minimum(neck, body), -level)


def _spider(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    legs = [
        _stroke(
            u, v, (-0.7 * np.cos(turn), -0.7 * np.sin(turn)), (0.7 * np.cos(turn), 0.7 * np.sin(turn)), 0.09
        )
        for turn in (0.0, np.pi / 3, 2 * np.pi / 3)
    ]
    return np.minimum.reduce([np.hypot(u, v) - 0.28, *legs])


_SYMBOLS = {
    "skull": _skull, "flame": _flame, "blade": _blade, "bomb": _bomb, "bolt": _bolt, "poison": _poison,
    "spider": _spider,
}  # fmt: skip


def _stroke(
    u: np.ndarray, v: np.ndarray, one: tuple[float, float], two: tuple[float, float], half: float
) -> np.ndarray:
    """The signed distance from a straight stroke with round ends, of the given half width."""
    along, across = two[0] - one[0], two[1] - one[1]
    share = ((u - one[0]) * along + (v - one[1]) * across) / (along**2 + across**2)
    share = np.clip(share, 0, 1)
    return np.hypot(u - one[0] - share * along, v - one[1] - share * across) - half
