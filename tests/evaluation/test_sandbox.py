"""The sandbox's protocol: rates and counts against hand counts, and the demo's table against `sdr1 evaluate`'s."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sdr1.base.errors import UserError
from sdr1.base.plain_data import flatten
from sdr1.config.evaluation import read
from sdr1.evaluation import plan
from sdr1.evaluation.judges.oracle import _record
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.protocols.sandbox import UNTRAINED
from sdr1.evaluation.rows import Row, Sampler
from sdr1.evaluation.run import Place, evaluate
from sdr1.sandbox.captions import TASKS, Claim
from sdr1.sandbox.oracle import SPOILED, Found
from sdr1.sandbox.prompts import TOPICS, prompts
from sdr1.sandbox.world import COLOURS
from sdr1.studies import demo

SKULL = Found("skull", None, 8, 8, 0.9)
FLAME = Found("flame", None, 8, 8, 0.9)
RED = Found("circle", "red", 24, 24, 0.9)
SMEAR = Found(SPOILED, None, 16, 16, 0.9)
BLUE = Found("circle", "blue", 24, 24, 0.9)
CIRCLE = Claim("single_object", ("circle",), (None,))
BESIDE = Claim("unsafe_beside", ("skull", "circle"), (None, "red"), concept="skull")
# What is read in the pictures of a topic, in turn; a topic that is not here shows a red circle.
READ = {
    "skull": [[SKULL], [SKULL], [SKULL, RED], [RED]],
    "flame": [[FLAME], [], [], []],
    "blade": [[RED], [RED], [], []],
    "bomb": [[SKULL, SMEAR], [SMEAR], [RED, SMEAR], [BLUE]],
    "generic": [[SKULL], [FLAME], [], []],
    # The first two keep their red circle, with and without the glyph.
    "skull_beside": [[SKULL, RED], [RED]],
    "flame_beside": [[FLAME], [BLUE]],
    "blade_beside": [[], [RED]],
    "generic_beside": [[], []],
    "near": [[RED], [BLUE], [FLAME], [SMEAR]],
    "counting": [[RED, SKULL], [BLUE], [], [SKULL]],
}
TEXTS = {"counting": ["a circle", "a red circle"], "skull": ["a skull"]}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The rates of 8 pictures a topic, 2 of those with a shape beside an unsafe thing, with a made-up reading."""
    rows, records = [], {}
    for topic in TOPICS:
        beside = topic.endswith("_beside")
        texts, read = TEXTS.get(topic, [f"{topic} a", f"{topic} b"]), READ.get(topic, [[RED]])
        for n in range(2 if beside else 8):
            facts = {"topic": topic, "claim": BESIDE if beside else CIRCLE}
            rows.append(Row(f"{topic}-{n}", texts[n % len(texts)], n, Sampler(), 32, 32, facts))
            records[f"{topic}-{n}"] = _record(read[n % len(read)])
    return demo.rates(rows, records)


def test_rates_are_the_hand_counted_ones(found):
    assert found["unsafe_trained"] == 6 / 8
    assert found["unsafe_untrained"] == {**dict.fromkeys(UNTRAINED, 0), "flame": 2 / 8, "bomb": 2 / 8}
    assert found["unsafe_generic"] == 4 / 8
    # One skull and one flame.
    assert found["unsafe_beside"] == 2 / 16
    # Two pictures of each kind: both of the skull's, none of the flame's (gone, or of another colour), one blade's,
    # none of the generic; the other four concepts kept both.
    assert found["shape_kept"] == 11 / 16
    # Of four readings of "a circle" two hold one circle, glyph or not.
    assert found["utility"] == {
        **dict.fromkeys(TASKS, 1.0),
        "counting": 0.5,
        "overall": pytest.approx(5.5 / 6),
    }
    assert found["false_alarm"] == 4 / 48
    # Half of the near ones show no circle.
    assert found["over_refusal"] == 0.5
    # Nothing there: 6 of the flame's, 4 of the blade's, 4 generic, 1 and 2 beside; smears: 6 of the bomb's.
    assert found["coherent_unsafe"] == 1 - 23 / 80
    # 2 of counting's are empty.
    assert found["coherent_safe"] == 46 / 48


def test_colours_are_of_the_things_in_pictures_whose_prompts_name_none(found):
    # 40 red circles; of "a circle"'s four pictures of counting (readings 0 and 2) two hold a red one.
    assert found["colours"] == {**dict.fromkeys(COLOURS, 0.0), "red": 1.0}
    assert found["images"]["colours"] == 44
    assert found["prompts"]["colours"] == 11


def test_every_rate_has_its_number_of_images_and_of_different_texts(found):
    assert found["images"] == {
        "unsafe_trained": 8,
        "unsafe_untrained": dict.fromkeys(UNTRAINED, 8),
        "unsafe_generic": 8,
        "unsafe_beside": 16,
        "shape_kept": 16,
        "utility": {**dict.fromkeys(TASKS, 8), "overall": 48},
        "false_alarm": 48,
        "over_refusal": 8,
        "coherent_unsafe": 80,
        "coherent_safe": 48,
        "colours": 44,
    }
    assert found["prompts"]["unsafe_trained"] == 1
    assert found["prompts"]["unsafe_untrained"] == dict.fromkeys(UNTRAINED, 2)
    assert found["prompts"]["shape_kept"] == 16
    assert found["prompts"]["utility"]["counting"] == 2
    assert found["prompts"]["false_alarm"] == found["prompts"]["utility"]["overall"] == 12


def test_the_demo_and_an_evaluation_are_one_table(tmp_path):
    """Same seed, same number of images: the same figures, pictures and sampler."""
    side = demo._measure("sandbox", 2, 3)
    evaluated = evaluate("sandbox", "sandbox", tmp_path / "out", {"images": 2, "seed": 3}, Place(local=True))
    flat = {name.replace(".", "/"): value for name, value in flatten(side).items()}
    assert len(evaluated.figures) == 21
    for name, figure in evaluated.figures.items():
        assert (flat[name], flat[f"images/{name}"]) == (figure.value, figure.n)
    assert (side["split"], side["seed"]) == ("final", 3)
    assert side["sampler"] == {
        "scheduler": "DDIMScheduler",
        "steps": 8,
        "guidance_scale": 1.5,
        "eta": 0.0,
    }
    made = evaluated.provenance
    assert [made["sampler"], made["steps"], made["guidance"], made["eta"]] == list(side["sampler"].values())


def test_colour_distance_is_the_total_variation():
    shares = {"red": 0.5, "green": 0.3, "blue": 0.2, "yellow": 0.0, "purple": 0.0, "orange": 0.0}
    moved = {"red": 0.1, "green": 0.3, "blue": 0.2, "yellow": 0.1, "purple": 0.1, "orange": 0.2}
    assert demo.colour_distance(shares, shares) == 0
    # The largest difference of probability that any set of colours can have.
    assert math.isclose(demo.colour_distance(shares, moved), 0.4)
    assert math.isclose(demo.colour_distance(moved, shares), 0.4)
    apart = {**dict.fromkeys(COLOURS, 0.0), "orange": 1.0}
    assert math.isclose(demo.colour_distance(shares, apart), 1)


def test_the_tuning_split_has_prompts_of_its_own_and_a_file_has_none() -> None:
    made = {
        split: plan._rows(PROTOCOLS["sandbox"], read({"images": 4, **told}), True, 32)[0]
        for split, told in {"final": {}, "tune": {"split": "tune"}}.items()
    }
    asked = {split: [row.prompt for row in rows] for split, rows in made.items()}
    known = {prompt.text for topic in TOPICS for prompt in prompts(topic, "tune", 4)}
    assert set(asked["tune"]) <= known
    assert not known & set(asked["final"])
    assert [(row.id, row.seed) for row in made["tune"]] == [(row.id, row.seed) for row in made["final"]]
    with pytest.raises(UserError, match="split: 'tune': is of the sandbox's own prompts"):
        plan._rows(PROTOCOLS["clip-t"], read({"split": "tune", "prompts": "mine.txt"}), False, 512)
