"""What a method is to erase: the sandbox's own task, or one in a user's words and prompts."""

from __future__ import annotations

from functools import cache

import numpy as np

from sdr1.base.errors import UserError
from sdr1.base.plain_data import shown
from sdr1.config.prompts import PromptSource
from sdr1.erasers.protocol import Task
from sdr1.models.schedulers import Sampler
from sdr1.prompts import files, labels
from sdr1.sandbox.captions import SYNONYMS, THINGS, UNSAFE_ADJECTIVES
from sdr1.sandbox.prompts import training_prompts
from sdr1.sandbox.world import COLOURS, SHAPES

STABLE_DIFFUSION = Sampler("DDIMScheduler", 50, 7.5)
"""As the papers draw with it."""
SAFE, UNSAFE = 600, 200
"""Prompts of the sandbox, as many as a training of `sdr1 train` has."""
_TWIN = "neutral"
"""Column of a prompt's twin."""


@cache
def of_sandbox(seed: int) -> Task:
    """The prompts that a GRPO run on the sandbox trains on, all of the training split; a twin has a shape in the unsafe
    thing's place."""
    prompts = training_prompts(safe=SAFE, unsafe=UNSAFE)
    unsafe = [prompt for prompt in prompts if prompt.label == "unsafe"]
    concepts = dict.fromkeys(prompt.claim.concept for prompt in unsafe)
    named = [word for concept in concepts for word in SYNONYMS.get(concept or "", ())]
    rng = np.random.default_rng(0)
    return Task(
        words=(*UNSAFE_ADJECTIVES, *named),
        unsafe=tuple(prompt.text for prompt in unsafe),
        neutral=tuple(twin(prompt.text, rng) for prompt in unsafe),
        retain=tuple(prompt.text for prompt in prompts if prompt.label == "safe"),
        sampler=Sampler(),
        seed=seed,
    )


def twin(text: str, rng: np.random.Generator) -> str:
    """The sandbox's prompt with a shape for its unsafe thing, and a colour for an unsafe adjective: as many words.

    Raises:
        ValueError: it names no unsafe thing.
    """
    words = text.split()
    things = {word for each in SYNONYMS.values() for word in each}
    for place, word in enumerate(words):
        told = place > 0 and words[place - 1] in UNSAFE_ADJECTIVES
        if word in things or (word in THINGS and told):
            shapes = [shape for shape in SHAPES if shape not in words]
            noun = [str(rng.choice(list(COLOURS)))] if told else []
            noun.append(str(rng.choice(shapes)))
            article = "an" if noun[0][0] in "aeiou" else "a"
            return " ".join([*words[: place - len(noun)], article, *noun, *words[place + 1 :]])
    raise ValueError(f"{text!r} names no unsafe thing")


def of_words(words: tuple[str, ...], path: str | None, seed: int) -> Task:
    """The task of a concept in a user's words, with the prompts of a file, or else the words themselves.

    A file's rows are unsafe prompts unless its column `label` says safe: these are to be kept. Its column `neutral` has the
    twin of an unsafe one; without it that is the empty prompt.

    Raises:
        UserError: no words are given, or the file is wrong or has no unsafe prompt.
    """
    if not words:
        raise UserError("--concept: none given; name what shall be erased, e.g. --concept nudity")
    if empty := [word for word in words if not word.strip()]:
        raise UserError(f"--concept: {empty[0]!r}: holds no word; name what shall be erased")
    unsafe, neutral, retain = list(words), [""] * len(words), []
    if path is not None:
        file = files.read(path, "--prompts", "--prompts")
        prompts = labels.labelled(file, PromptSource(path=path))
        unsafe, neutral = [], []
        for prompt, entry in zip(prompts, file.entries, strict=True):
            other = entry.cells.get(_TWIN)
            if prompt.label == "safe":
                retain.append(prompt.text)
            elif not isinstance(other, str) and not files.is_empty(other):
                raise UserError(f"{entry.where}: {_TWIN!r} is {shown(other)}; write it as a text, in quotes")
            else:
                unsafe.append(prompt.text)
                neutral.append("" if files.is_empty(other) else str(other).strip())
        if not unsafe:
            raise UserError(f"--prompts: {path!r}: every row is labelled safe; add prompts of the concept")
    return Task(words, tuple(unsafe), tuple(neutral), tuple(retain), STABLE_DIFFUSION, seed)
