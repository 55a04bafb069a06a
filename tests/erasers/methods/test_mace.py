"""MACE: the tokens that twins share, both closed forms by their normal equations, and the loss of its LoRAs by a plain loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers import layers, maps
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.mace import Mace, Pictures, attention, differs, shared
from sdr1.erasers.trajectories import predict
from sdr1.models import texts
from tests.erasers import checks

SMALL = {
    "templates": ("{}", "two {}"),
    "images": 2,
    "steps": 2,
    "updates": 2,
    "batch": 2,
    "learning_rate": 1e-2,
}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    checks.holds(Mace(**SMALL), pipeline, task, tmp_path / "out")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # Of eight positions: start, a, x, b, end | start, a, y, z, b, end.
        ([0, 5, 1, 6, 9], [0, 5, 2, 3, 6, 9], ([0, 1, 3, 4, 5, 6], [0, 1, 4, 5, 6, 7])),
        ([0, 1, 9], [0, 9], ([0, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6])),
        ([0, 1, 9], [0, 1, 9], (list(range(8)), list(range(8)))),
        ([0, 1, 1, 9], [0, 1, 9], ([0, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6])),
    ],
)
def test_shared_tokens(one, other, expected) -> None:
    assert shared(one, other, 8) == expected


def _rows(pipeline, text):
    return checks.states(pipeline, text)[0].double()


def _sums(base, start, pairs, kept, weight):
    left = 0.3 * torch.eye(16).double() + weight / len(kept) * kept.T @ kept
    right = 0.3 * start + weight / len(kept) * base @ kept.T @ kept
    for key, value in pairs:
        left = left + torch.outer(key, key)
        right = right + torch.outer(value, key)
    return left, right


@pytest.mark.parametrize("first", ["paper", "released"])
def test_normal_equations(first, pipeline, task) -> None:
    """Both closed forms with all sums by hand; without updates the LoRAs between are nothing."""
    settings = Mace(**{**SMALL, "updates": 0, "mask": "none"}, prior=4.0, closeness=0.3, first_prior=first)
    edited = layers.kv(settings(pipeline, task, Meter()).pipeline.unet)
    unsafe = [text for prompt in task.unsafe for text in (prompt, f"two {prompt}")]
    neutral = [text for prompt in task.neutral for text in (prompt, f"two {prompt}".strip())]
    kept = torch.cat([_rows(pipeline, text) for text in task.retain])
    pairs = []
    for text, twin in zip(unsafe, neutral):
        ids, others = (pipeline.tokenizer(each).input_ids for each in (text, twin))
        here, there = shared(ids, others, 77)
        pairs += zip(_rows(pipeline, text)[here], _rows(pipeline, twin)[there])
    for name, layer in list(layers.kv(pipeline.unet).items())[::7]:
        base = layer.weight.double().detach()

        left, right = _sums(
            base,
            base,
            [(one, base @ other) for one, other in pairs],
            kept,
            4.0 if first == "paper" else 4.0 * 7e-7,
        )
        begun = right @ torch.linalg.inv(left)
        rows = torch.cat([_rows(pipeline, text) for text in unsafe])
        left, right = _sums(base, begun, [(row, begun @ row) for row in rows], kept, 4.0)
        now = edited[name].weight.double()
        assert (now @ left - right).abs().max() / right.abs().max() < 1e-5
        assert (base @ left - right).abs().max() / right.abs().max() > 1e-4


@torch.no_grad()
def test_attention_is_the_sum_of_norms() -> None:
    seen = {"a": torch.rand(2, 3, 16, 5), "b": torch.rand(2, 3, 4, 5)}
    looked = torch.tensor([[False, True, True, False, False], [False, False, False, False, True]])
    concept = torch.tensor([[[[1.0, 0], [0, 0]]], [[[1.0, 1], [0, 1]]]])
    total = 0.0
    for name, side in (("a", 4), ("b", 2)):
        for sample in range(2):
            squares = 0.0
            for place in range(side**2):
                row, column = divmod(place, side)
                if concept[sample, 0, row * 2 // side, column * 2 // side]:
                    for token in looked[sample].nonzero()[:, 0]:
                        squares += float((seen[name][sample, :, place, token] ** 2).sum())
            total += squares**0.5 / 2
    assert float(attention(seen, looked, concept)) == pytest.approx(total, rel=1e-5)


def test_places_where_twins_differ() -> None:
    one, other = (
        torch.zeros(1, 2, 2, 2),
        torch.tensor([[[[1.0, 0.0], [0.2, 0.0]], [[-1.0, 0.0], [0.2, 0.9]]]]),
    )
    assert differs(one, other, 0.3).tolist() == [[[[1, 0], [0, 1]]]]


def test_a_lora_lowers_the_attention_to_its_tokens(pipeline, alone) -> None:
    settings = Mace(**{**SMALL, "learning_rate": 0.05})
    own = settings(pipeline, alone, Meter()).pipeline
    states = texts.states(own, alone.unsafe).detach()
    looked = maps.tokens(own, alone.unsafe, ("square",), "words")
    pictures = Pictures(torch.randn(1, 4, 8, 8), states, looked, torch.ones(1, 1, 8, 8))

    def measured():
        with torch.no_grad(), maps.recorded(own.unet) as seen:
            predict(own.unet, pictures.latents, torch.tensor(200), states)
        return float(attention(seen, looked, pictures.concept))

    before = measured()
    lora = settings._lora(own, pictures, alone, 10, torch.Generator().manual_seed(0))
    assert measured() == before
    with torch.no_grad():
        for name, layer in layers.kv(own.unet).items():
            assert torch.linalg.matrix_rank(lora[name]) <= 1
            layer.weight += lora[name]
    assert measured() < before


def test_concepts_have_a_lora_each(task) -> None:
    many = replace(
        task,
        words=("ring", "red square"),
        unsafe=("a ring", "a red square", "a cross", "a red square and a ring"),
        neutral=("",) * 4,
    )
    assert Mace()._groups(many) == [[0, 3], [1], [2]]
    assert Mace(separate=False)._groups(many) == [[0, 1, 2, 3]]
    each = 8 * 30 * 2 * 2 + 120 * 3
    assert Mace().unet_evaluations(many) == 3 * each


def test_too_few_tokens_are_told(pipeline, task) -> None:
    with pytest.raises(UserError, match="closeness: 0: 7 tokens do not determine weights of 16; give more"):
        Mace()._fit(pipeline.unet, {}, torch.zeros(3, 16), lambda name: None, torch.zeros(4, 16), 1.0)
