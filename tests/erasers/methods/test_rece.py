"""RECE: the attack and a round's edit fulfil their normal equations in float64; without rounds it is UCE."""

from __future__ import annotations

import pytest
import torch

from sdr1.erasers import layers
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.rece import Rece, attack
from sdr1.erasers.methods.uce import Uce
from sdr1.models import texts
from sdr1.models.pipeline import sha256
from tests.erasers import checks


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    checks.holds(Rece(rounds=2), pipeline, task, tmp_path / "out")


def test_without_rounds_it_is_uce(pipeline, task) -> None:
    rece, uce = (kind(pipeline, task, Meter()).pipeline for kind in (Rece(rounds=0), Uce()))
    assert sha256(rece) == sha256(uce)


def test_attack_is_the_nearest_state(pipeline, task) -> None:
    edited = Uce()(pipeline, task, Meter()).pipeline.unet
    base = {name: layer.weight for name, layer in layers.kv(pipeline.unet).items()}
    states = torch.randn(5, 16)
    found = attack(edited, base, states, 0.2)
    for state, other in zip(states.double(), found):
        gradient = 0.2 * other
        for name, layer in layers.kv(edited).items():
            weight = layer.weight.double()
            gradient = gradient + weight.T @ (weight @ other - base[name].double() @ state)
        assert gradient.abs().max() < 1e-9
    # Nothing was edited away: the state itself is the nearest, but for its length.
    torch.testing.assert_close(
        attack(pipeline.unet, base, states, 1e-9), states.double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("origin", ["current", "base"])
def test_a_rounds_edit(origin, pipeline, task) -> None:
    before = layers.kv(Rece(rounds=0)(pipeline, task, Meter()).pipeline.unet)
    once = Rece(rounds=1, round_closeness=0.3, round_retain_weight=0.4, origin=origin)
    after = layers.kv(once(pipeline, task, Meter()).pipeline.unet)
    base = layers.kv(pipeline.unet)
    concept = texts.states(pipeline, task.unsafe).double().flatten(0, 1)
    targets = texts.states(pipeline, task.neutral).double().flatten(0, 1)
    kept = texts.states(pipeline, task.retain).double().flatten(0, 1)
    normal = 0.1 * torch.eye(16).double() + sum(
        w.weight.double().T @ w.weight.double() for w in before.values()
    )
    mixed = sum(before[name].weight.double().T @ base[name].weight.double() for name in base)
    found = concept @ mixed.T @ torch.linalg.inv(normal).T
    for name, layer in after.items():
        start = (before if origin == "current" else base)[name].weight.double()
        left = 0.3 * torch.eye(16).double() + found.T @ found + 0.4 * kept.T @ kept
        right = start @ (0.3 * torch.eye(16).double() + targets.T @ found + 0.4 * kept.T @ kept)
        rest = (layer.weight.double() @ left - right).abs().max() / right.abs().max()
        assert rest < 1e-5
