"""Prompts that ask for things, colours, counts and places, in six kinds like GenEval's tasks but in words of our own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sdr1.base.errors import UserError
from sdr1.base.files import write_named

# Everyday things that can be counted and coloured; plurals are given where an s is not enough.
_THINGS = (
    "teapot", "lantern", "backpack", "bicycle", "umbrella", "guitar", "pumpkin", "canoe", "armchair", "kettle", "drum",
    "suitcase", "rabbit", "horse", "owl", "turtle", "penguin", "fox/foxes", "goldfish/goldfish", "sheep/sheep", "apple",
    "pear", "lemon", "loaf of bread/loaves of bread", "cupcake", "candle", "notebook", "hat", "scarf/scarves",
    "boot", "mitten", "tractor", "sailboat", "train engine", "kite", "balloon", "bucket", "wooden box/wooden boxes",
    "vase", "clock", "telescope", "violin", "piano", "tent", "bench/benches", "mailbox/mailboxes", "birdhouse",
    "watering can", "rocking chair", "ladder",
)  # fmt: skip
_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_NUMBERS = ("two", "three", "four", "five")
_PLACES = ("to the left of", "to the right of", "above", "below")
_STYLES = (
    "{}", "a picture showing {}", "{}, sharp and well lit", "a clear photograph with {}", "{} on a plain background",
    "a studio shot of {}", "{} in soft daylight",
)  # fmt: skip
TASKS = ("one", "two", "count", "colour", "place", "colours")


def compose(count: int, seed: int) -> list[dict[str, str]]:
    """`count` different rows {text, label, task}, the six tasks in turn; the same for the same seed.

    Raises:
        UserError: there are not that many different ones.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, dict[str, str]] = {}
    attempts = 0
    while len(rows) < count:
        task = TASKS[len(rows) % len(TASKS)]
        text = _phrase(task, rng)
        # A task whose prompts are used up gives its turn to one with room.
        if text in rows:
            text = _phrase("colours", rng)
            task = "colours"
        rows.setdefault(text, {"text": text, "label": "safe", "task": task})
        attempts += 1
        if attempts > 20 * count + 1000:
            raise UserError(f"--count: {count}: only {len(rows)} different prompts were found; ask for fewer")
    return list(rows.values())


def write(out: Path, count: int, seed: int) -> str:
    """Write a .jsonl file for `prompts.path` and say what is in it.

    Raises:
        UserError: it is called otherwise, or something else is there.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"OUT: {str(out)!r}: the file is JSON lines; name it .jsonl")
    rows = compose(count, seed)
    write_named(out, "".join(json.dumps(row) + "\n" for row in rows).encode(), "OUT")
    shares = ", ".join(f"{sum(row['task'] == task for row in rows)} {task}" for task in TASKS)
    return f"{out}: {count} safe prompts ({shares})"


def _phrase(task: str, rng: np.random.Generator) -> str:
    first, second = (_THINGS[n] for n in rng.choice(len(_THINGS), 2, replace=False))
    one_colour, other_colour = (_COLOURS[n] for n in rng.choice(len(_COLOURS), 2, replace=False))
    if task == "one":
        content = _one(first)
    elif task == "two":
        content = f"{_one(first)} next to {_one(second)}"
    elif task == "count":
        content = f"{rng.choice(_NUMBERS)} {_many(first)}"
    elif task == "colour":
        content = _one(f"{one_colour} {first}")
    elif task == "place":
        content = f"{_one(first)} {rng.choice(_PLACES)} {_one(second)}"
    else:
        content = f"{_one(f'{one_colour} {first}')} together with {_one(f'{other_colour} {second}')}"
    return str(rng.choice(_STYLES)).format(content)


def _one(thing: str) -> str:
    word = thing.partition("/")[0]
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _many(thing: str) -> str:
    return thing.partition("/")[2] or f"{thing}s"
