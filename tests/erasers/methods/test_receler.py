"""Receler: mask and regulariser against plain loops, soft tokens that lead back to the base, nets that learn the formula."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods import receler
from sdr1.erasers.methods.receler import Receler, attacked, mask, outside
from sdr1.erasers.trajectories import predict
from sdr1.models import texts
from tests.erasers import checks

SMALL = {
    "updates": 2,
    "batch": 2,
    "inner": 2,
    "soft_tokens": 3,
    "map_side": 4,
    "width": 4,
    "learning_rate": 1e-2,
}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    checks.holds(Receler(**SMALL), pipeline, task, tmp_path / "out")


def test_fresh_nets_are_the_base(pipeline, task) -> None:
    checks.changes_nothing(Receler(**{**SMALL, "updates": 1, "learning_rate": 1e-30}), pipeline, task)


def test_without_the_attack_the_nets_learn_the_formula(pipeline, alone, monkeypatch) -> None:
    """The first step of Adam at a net's bias goes against the finite difference of the loss, in float64."""
    settings = Receler(**{**SMALL, "updates": 1, "batch": 1}, attack=False, eta=2.0)
    shown = []

    def keeping(unet, latents, time, states):
        shown.append((latents, time, states))
        return predict(unet, latents, time, states)

    monkeypatch.setattr(receler, "predict", keeping)
    meter = Meter()
    bias = "mid_block.attentions.0.transformer_blocks.0.attn2.up.bias"
    moved = settings(pipeline, alone, meter).patch.tensors[bias]
    latents, time, states = shown[-1]
    assert torch.equal(states, checks.states(pipeline, alone.unsafe[0]))
    unet = copy.deepcopy(pipeline.unet).double()
    held = receler.nets(unet, settings).double()
    held.attach(unet)
    own = held.tensors()[bias]

    def predicted(given):
        with torch.no_grad():
            return predict(unet, latents.double(), time, given.double())

    target = 3 * predicted(checks.states(pipeline, "")) - 2 * predicted(states)
    for place in (0, 7, 13):
        losses = []
        for sign in (1, -1):
            own[place] = sign * 1e-3
            losses.append(((predicted(states) - target) ** 2).mean())
        own[place] = 0
        assert torch.sign(moved[place]) == -torch.sign(losses[0] - losses[1])


@torch.no_grad()
def test_mask() -> None:
    seen = {"a": torch.rand(4, 2, 16, 5), "b": torch.rand(4, 3, 16, 5), "other": torch.rand(4, 2, 64, 5)}
    looked = torch.tensor([[False, True, True, False, False], [False, False, False, False, True]])
    found = mask(seen, looked, 4, 0.4)
    for sample, tokens in ((0, [1, 2]), (1, [4])):
        places = []
        for place in range(16):
            layers = [seen[name][2 + sample, :, place].mean(0) for name in ("a", "b")]
            places.append(sum(float(layer[token]) for layer in layers for token in tokens))
        low, high = min(places), max(places)
        expected = [float((each - low) / (high - low) >= 0.4) for each in places]
        assert found[sample].flatten().tolist() == expected
        assert 0 < sum(expected) < 16
    with pytest.raises(UserError, match="map_side: 3: no cross-attention has maps of that side; use 4, 8"):
        mask(seen, looked, 3, 0.4)


def test_outside_counts_what_the_mask_leaves() -> None:
    concept = torch.tensor([[[[1.0, 0], [0, 0]]], [[[0.0, 0], [1, 1]]]])
    added = [torch.randn(2, 4, 3), torch.randn(2, 16, 5)]
    terms = []
    for each, side in zip(added, (2, 4)):
        total = count = 0.0
        for sample in range(2):
            for row in range(side):
                for column in range(side):
                    if not concept[sample, 0, row * 2 // side, column * 2 // side]:
                        total += float((each[sample, row * side + column] ** 2).mean())
                        count += 1
        terms.append(total / count)
    assert float(outside(added, concept)) == pytest.approx(sum(terms) / 2, rel=1e-5)


def test_soft_tokens_lead_to_the_bases_prediction(pipeline, alone) -> None:
    settings = Receler(**{**SMALL, "inner": 12})
    states = texts.states(pipeline, alone.unsafe).detach()
    places = settings._soft_places(pipeline, alone)
    end = 1 + len(pipeline.tokenizer.tokenize(alone.unsafe[0]))
    assert places.tolist() == [[end, end + 1, end + 2]]
    unet, latents, time = pipeline.unet, torch.randn(1, 4, 8, 8), torch.tensor(500)
    with torch.no_grad():
        base = predict(unet, latents, time, states)
    losses = []
    for steps in (1, 12):
        random = torch.Generator().manual_seed(0)
        by = Receler(**{**SMALL, "inner": steps})
        found = attacked(unet, latents, time, states, places, base, by, random)
        rest = torch.ones(77, dtype=torch.bool)
        rest[places[0]] = False
        assert torch.equal(found[0, rest], states[0, rest])
        with torch.no_grad():
            losses.append(float(((predict(unet, latents, time, found) - base) ** 2).mean()))
    assert losses[1] < 0.8 * losses[0]
    short = SimpleNamespace(tokenizer=SimpleNamespace(model_max_length=16))
    with pytest.raises(UserError, match="soft_tokens: 75: a prompt has 16"):
        Receler(soft_tokens=75)._soft_places(short, alone)
