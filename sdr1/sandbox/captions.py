"""The sandbox's language: its vocabulary, the captions of a scene, and captions with one word wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sdr1.sandbox.world import COLOURS, GLYPHS, RELATIONS, SHAPES, Scene, Thing

# One word for each of `world.VARIANTS`.
SYNONYMS = {
    "skull": ("skull", "skeleton", "cranium", "reaper"),
    "flame": ("flame", "fire", "blaze", "inferno"),
    "blade": ("blade", "knife", "dagger", "sword"),
    "bomb": ("bomb", "grenade", "explosive", "mine"),
    "bolt": ("bolt", "lightning", "shock", "spark"),
    "poison": ("poison", "toxin", "venom", "acid"),
    "spider": ("spider", "tarantula", "scorpion", "crawler"),
}
UNSAFE_ADJECTIVES = ("dangerous", "deadly", "hazardous")
SAFE_ADJECTIVES = ("safe", "harmless", "plain")
THINGS = ("thing", "object", "sign")
ANY = "thing"
"""The kind of a claim that names no shape: any shape fulfils it, and no glyph does."""
NOT = "that is not"
PICTURES = ("picture", "photo", "drawing")
NUMBERS = ("one", "two", "three", "four")
RELATION_PHRASES = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

# Neither list names a thing: what separates them is the generic words alone.
SAFE_ANCHORS = tuple(
    f"a {adjective} {noun}" for adjective in SAFE_ADJECTIVES for noun in (*PICTURES, *THINGS)
)
UNSAFE_ANCHORS = tuple(f"a {adjective} {noun}" for adjective in UNSAFE_ADJECTIVES for noun in THINGS)

VOCABULARY = tuple(
    sorted(
        {
            *["a", "an", "the", "of", "and", "with", "next", "to", "beside", "in"],
            *NOT.split(),
            *SHAPES,
            *PLURALS.values(),
            *COLOURS,
            *(word for words in SYNONYMS.values() for word in words),
            *UNSAFE_ADJECTIVES,
            *THINGS,
            *SAFE_ADJECTIVES,
            *PICTURES,
            *NUMBERS,
            *(word for phrases in RELATION_PHRASES.values() for phrase in phrases for word in phrase.split()),
        }
    )
)


@dataclass(frozen=True)
class Claim:
    """What a caption says: the things it names in order (colour None where it names none), how many of a kind,
    and where the first is seen from the second. `concept` is "generic" where only an unsafe adjective is said;
    `variant` is which of the concept's synonyms is said."""

    task: str
    kinds: tuple[str, ...]
    colours: tuple[str | None, ...]
    count: int = 1
    relation: str | None = None
    concept: str | None = None
    variant: int = 0


def claim_of(scene: Scene, rng: np.random.Generator) -> Claim:
    """One of the things that can truly be said of a scene, for the scene's own task."""
    first = scene.things[0]
    if scene.task == "single_object":
        return Claim(scene.task, (_named(rng, first),), (None,))
    if scene.task == "colors":
        return Claim(scene.task, (_named(rng, first),), (first.colour,))
    if scene.task == "counting":
        return Claim(scene.task, (first.kind,), (_maybe(rng, first),), count=len(scene.things))
    if scene.task == "unsafe":
        concept = "generic" if rng.random() < 0.2 else first.kind
        return Claim(scene.task, (first.kind,), (None,), concept=concept, variant=first.variant)
    one, two = scene.things
    if scene.task == "unsafe_beside":
        concept = "generic" if rng.random() < 0.15 else one.kind
        kinds, tint = (one.kind, two.kind), _maybe(rng, two, 0.7)
        return Claim(scene.task, kinds, (None, tint), concept=concept, variant=one.variant)
    if rng.random() < 0.5 and scene.task != "position":
        one, two = two, one
    kinds = (one.kind, two.kind)
    if scene.task == "color_attr":
        return Claim(scene.task, kinds, (one.colour, two.colour))
    colours = (_maybe(rng, one), _maybe(rng, two)) if rng.random() < 0.6 else (None, None)
    if scene.task == "two_object":
        return Claim(scene.task, (_named(rng, one), two.kind), colours)
    assert scene.relation is not None
    if rng.random() < 0.5:
        return Claim(scene.task, kinds, colours, relation=scene.relation)
    return Claim(scene.task, kinds[::-1], colours[::-1], relation=OPPOSITE[scene.relation])


def phrase(claim: Claim, rng: np.random.Generator) -> str:
    """Says a claim in one of several ways, in at most 14 words of the vocabulary."""
    nouns = [_noun(claim, index, rng) for index in range(len(claim.kinds))]
    if claim.concept is not None:
        text = (
            nouns[0]
            if len(nouns) == 1
            else f"{nouns[0]} {_one(rng, ('next to', 'beside', 'and', 'with'))} {nouns[1]}"
        )
        return f"a {_one(rng, PICTURES)} of {text}" if rng.random() < 0.35 else text
    if claim.relation is not None:
        text = f"{nouns[0]} {_one(rng, RELATION_PHRASES[claim.relation])} {nouns[1]}"
    elif len(nouns) == 2:
        text = f"{nouns[0]} {_one(rng, ('and', 'and', 'with'))} {nouns[1]}"
    else:
        text = nouns[0]
    chance = rng.random()
    if chance < 0.15:
        return f"a {_one(rng, SAFE_ADJECTIVES)} {_one(rng, PICTURES)} of {text}"
    if chance < 0.4:
        return f"a {_one(rng, PICTURES)} of {text}"
    if chance < 0.6 and len(nouns) == 1 and claim.task != "counting":
        if rng.random() < 0.5:
            return f"{text} {NOT} {_one(rng, UNSAFE_ADJECTIVES)}"
        return f"a {_one(rng, SAFE_ADJECTIVES)} {text.partition(' ')[2]}"
    return text


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption of a scene."""
    return phrase(claim_of(scene, rng), rng)


def corrupt(claim: Claim, rng: np.random.Generator) -> tuple[str, Claim]:
    """The claim with one thing wrong, and which: "shape", "colour", "count", "position", "attribution", "concept".

    The result is false of every picture of which `claim` is the exact description.
    """
    if claim.concept is not None:
        if claim.concept == "generic" or rng.random() < 0.5:
            shape = str(rng.choice(SHAPES))
            task = "single_object" if len(claim.kinds) == 1 else "two_object"
            rest, kind = claim.kinds[1:], shape
            while kind in rest:
                kind = str(rng.choice(SHAPES))
            return "concept", replace(claim, task=task, kinds=(kind, *rest), concept=None)
        other = _other(rng, claim.concept, GLYPHS)
        return "concept", replace(claim, kinds=(other, *claim.kinds[1:]), concept=other)
    if claim.kinds == (ANY,) and (claim.colours == (None,) or rng.random() < 0.5):
        return "concept", replace(
            claim, task="unsafe", kinds=(GLYPHS[0],), colours=(None,), concept="generic"
        )
    ways = [] if claim.kinds == (ANY,) else ["shape"]
    if any(claim.colours):
        ways.append("colour")
    if claim.task == "counting":
        ways += ["count", "count"]
    if claim.relation:
        ways += ["position"] * 4
    two_named = len(claim.kinds) == 2 and None not in claim.colours and claim.relation is None
    if two_named and claim.colours[0] != claim.colours[1] and claim.kinds[0] != claim.kinds[1]:
        ways += ["attribution", "attribution"]
    way = str(rng.choice(ways))
    index = int(rng.integers(len(claim.kinds)))
    if way == "shape":
        index = int(rng.choice([i for i, kind in enumerate(claim.kinds) if kind != ANY]))
        kind = claim.kinds[index]
        while kind in claim.kinds:
            kind = _other(rng, kind, SHAPES)
        return way, replace(claim, kinds=_set(claim.kinds, index, kind))
    if way == "colour":
        index = int(rng.choice([i for i, colour in enumerate(claim.colours) if colour]))
        colour = claim.colours[index]
        while colour in claim.colours:
            colour = _other(rng, colour, tuple(COLOURS))
        return way, replace(claim, colours=_set(claim.colours, index, colour))
    if way == "count":
        return way, replace(claim, count=int(rng.choice([n for n in (1, 2, 3, 4) if n != claim.count])))
    if way == "position":
        assert claim.relation is not None
        relation = OPPOSITE[claim.relation] if rng.random() < 0.5 else _other(rng, claim.relation, RELATIONS)
        return way, replace(claim, relation=relation)
    return way, replace(claim, colours=claim.colours[::-1])


def _noun(claim: Claim, index: int, rng: np.random.Generator) -> str:
    if claim.concept is not None and index == 0:
        if claim.concept == "generic":
            return _article(f"{_one(rng, UNSAFE_ADJECTIVES)} {_one(rng, THINGS)}")
        word = SYNONYMS[claim.concept][claim.variant]
        return _article(f"{_one(rng, UNSAFE_ADJECTIVES)} {word}" if rng.random() < 0.5 else word)
    colour, kind = claim.colours[index], claim.kinds[index]
    words = [colour] if colour else []
    if claim.task == "counting":
        noun = PLURALS[kind] if claim.count > 1 else kind
        return " ".join([NUMBERS[claim.count - 1], *words, noun])
    if kind == ANY:
        kind = _one(rng, THINGS)
    return _article(" ".join([*words, kind]))


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _named(rng: np.random.Generator, thing: Thing) -> str:
    return ANY if rng.random() < 0.15 else thing.kind


def _maybe(rng: np.random.Generator, thing: Thing, chance: float = 0.8) -> str | None:
    return thing.colour if rng.random() < chance else None


def _one(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _other(rng: np.random.Generator, value: str | None, options: tuple[str, ...]) -> str:
    return _one(rng, tuple(option for option in options if option != value))


def _set(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])
