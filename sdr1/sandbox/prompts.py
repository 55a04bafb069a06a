"""Training and held-out prompts of the sandbox, in three splits without a common text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import numpy as np

from sdr1.base.records import Label
from sdr1.sandbox.captions import ANY, NOT, SAFE_ADJECTIVES, TASKS, Claim, claim_of, phrase
from sdr1.sandbox.world import GLYPHS, sample_scene

Split = Literal["train", "tune", "final"]
CONCEPTS = (*GLYPHS, "generic")
BESIDE = tuple(f"{concept}_beside" for concept in CONCEPTS)
NEAR = "near"
"""The topic of safe prompts that sound near to the unsafe ones: they say "harmless" or "not dangerous"."""
TOPICS = (*TASKS, *CONCEPTS, *BESIDE, NEAR)
# Shares of the training, tuning and final split, out of ten.
# Chosen so that the small topics are divided evenly.
_SALT = b"269"
_TENTHS: dict[Split, range] = {"train": range(0, 6), "tune": range(6, 8), "final": range(8, 10)}
# A task that the base already masters teaches little, but forgets when it is rare.
_SAFE_SHARES = {
    "single_object": 2, "two_object": 3, "counting": 3, "colors": 2, "position": 3, "color_attr": 3,
}  # fmt: skip
# Generic words draw any of the glyphs, so what they unlearn reaches concepts that are never named.
_GENERIC_SHARE = 2


@dataclass(frozen=True)
class SandboxPrompt:
    """A prompt with the claim that the oracle's `verdict` judges pictures by; `claim.concept` names the unsafe
    concept (a glyph or generic), None on a safe prompt."""

    text: str
    label: Label
    topic: str
    claim: Claim


def prompts(topic: str, split: Split, count: int, seed: int = 0) -> list[SandboxPrompt]:
    """`count` prompts on one of `TOPICS`, all different as long as the topic has that many, then repeated in turn.

    The splits share no text. On the topics with two things, counts or colours they do not even share content: what
    is held out is the combination of shapes, colours, counts and relation. Raises ValueError on an unknown topic.
    """
    if topic not in TOPICS:
        raise ValueError(f"topic: {topic!r}: use one of {', '.join(TOPICS)}")
    unique = _different(topic, split, count, seed)
    return [unique[n % len(unique)] for n in range(count)]


# Every training and every evaluation of a process asks for the same ones.
@lru_cache(maxsize=256)
def _different(topic: str, split: Split, count: int, seed: int) -> tuple[SandboxPrompt, ...]:
    """At most `count` prompts without a repeated text."""
    concept = topic.removesuffix("_beside")
    task = "unsafe_beside" if topic.endswith("_beside") else "unsafe" if topic in CONCEPTS else topic
    rng = np.random.default_rng((seed, TOPICS.index(topic), *split.encode()))
    found: dict[str, SandboxPrompt] = {}
    for _ in range(60 * count + 2000):
        if len(found) == count:
            break
        each = str(rng.choice(("single_object", "colors"))) if task == NEAR else task
        claim = claim_of(sample_scene(rng, each), rng)
        if concept in CONCEPTS:
            claim = replace(
                claim,
                concept=concept,
                kinds=(GLYPHS[0] if concept == "generic" else concept, *claim.kinds[1:]),
            )
        text = phrase(claim, rng)
        if (topic != NEAR and ANY in claim.kinds) or _says_safe(text) != (topic == NEAR):
            continue
        if _split(text, claim) == split:
            found.setdefault(text, SandboxPrompt(text, "unsafe" if claim.concept else "safe", topic, claim))
    return tuple(found.values())


def training_prompts(
    safe: int, unsafe: int, concepts: tuple[str, ...] = ("skull", "generic"), seed: int = 0
) -> list[SandboxPrompt]:
    """Prompts to train on: `safe` ones on the six tasks, more on those the base is worse at, then `unsafe` ones on the
    concepts, half of them beside a shape, twice as many generic ones as others. No word of a concept that is not in
    `concepts` occurs."""
    unsafe_shares = {
        topic: _GENERIC_SHARE if concept == "generic" else 1
        for concept in concepts
        for topic in (concept, f"{concept}_beside")
    }
    return _spread(_SAFE_SHARES, safe, seed) + _spread(unsafe_shares, unsafe, seed)


def _spread(shares: dict[str, int], count: int, seed: int) -> list[SandboxPrompt]:
    ends = [round(count * end / sum(shares.values())) for end in accumulate(shares.values(), initial=0)]
    return [
        prompt
        for topic, begin, end in zip(shares, ends, ends[1:])
        for prompt in prompts(topic, "train", end - begin, seed)
    ]


def _says_safe(text: str) -> bool:
    return NOT in text or any(word in SAFE_ADJECTIVES for word in text.split())


def _split(text: str, claim: Claim) -> Split:
    """The split of a prompt, by a hash of its content, or of its text where there is little content to divide."""
    if claim.task in ("single_object", "unsafe"):
        key = text
    else:
        kinds = claim.kinds if claim.concept is None else claim.kinds[1:]
        # With two colours named, both tasks ask for the same texts.
        task = "pair" if claim.task in ("two_object", "color_attr") else claim.task
        key = repr((task, claim.concept, kinds, claim.colours, claim.count, claim.relation))
    tenth = hashlib.blake2b(key.encode(), digest_size=8, salt=_SALT).digest()[0] * 10 // 256
    return next(split for split, tenths in _TENTHS.items() if tenth in tenths)
