"""SafetyDPO: the loss against its formula, and pairs that share noise and timestep and are shown under the unsafe prompt."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from sdr1.erasers.meter import Meter
from sdr1.erasers.methods import safetydpo
from sdr1.erasers.methods.safetydpo import SafetyDpo, preference
from tests.erasers import checks

SMALL = {"pairs": 2, "batch": 2, "updates": 3, "warmup": 1, "learning_rate": 1e-2}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    erased = checks.holds(SafetyDpo(**SMALL), pipeline, task, tmp_path / "out")
    after = dict(erased.pipeline.unet.named_parameters())
    moved = {name for name, held in pipeline.unet.named_parameters() if not torch.equal(held, after[name])}
    assert moved
    assert all(name.split(".")[-2] in ("to_q", "to_k", "to_v", "0") and ".attn" in name for name in moved)


def test_loss_is_the_formula() -> None:
    now, base = [0.5, 0.7, 0.9, 0.3], [0.6, 0.6, 0.8, 0.4]
    losses = []
    for pair in (0, 1):
        inside = -20 / 2 * ((now[pair] - now[2 + pair]) - (base[pair] - base[2 + pair]))
        losses.append(-math.log(1 / (1 + math.exp(-inside))))
    found = preference(torch.tensor(now), torch.tensor(base), 20.0)
    assert float(found) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_pairs_are_twins_under_the_unsafe_prompt(pipeline, alone, seen, monkeypatch) -> None:
    kept = []
    monkeypatch.setattr(
        safetydpo,
        "preference",
        lambda now, base, beta: kept.append((now, base)) or preference(now, base, beta),
    )
    SafetyDpo(**{**SMALL, "updates": 1, "warmup": 0}, empty=0, flip=False)(pipeline, alone, Meter())
    (won_states, won_noise, won), (lost_states, lost_noise, lost) = seen.pools
    assert torch.equal(won_noise, lost_noise)
    unsafe = checks.states(pipeline, alone.unsafe[0])
    torch.testing.assert_close(won_states[:1], checks.states(pipeline, alone.neutral[0]))
    torch.testing.assert_close(lost_states[:1], unsafe)
    ((shown, _, times, noise),) = seen.noised
    rows = [next(row for row in range(2) if torch.equal(won[row], each)) for each in shown]
    expected = []
    for pictures in (won, lost):
        noisy = pipeline.scheduler.add_noise(pictures[rows], noise, times)
        with torch.no_grad():
            predicted = pipeline.unet(noisy, times, unsafe.repeat(2, 1, 1)).sample
        expected += [((predicted[row] - noise[row]) ** 2).mean() for row in range(2)]
    ((now, base),) = kept
    torch.testing.assert_close(base, torch.stack(expected), rtol=1e-4, atol=1e-5)
    # A fresh adapter is the base.
    assert torch.equal(now, base)


def test_first_update_prefers_the_won_picture(pipeline, alone, seen) -> None:
    """Every adapted layer moves against the gradient of L_w - L_l, which is that of the loss at the base."""
    settings = SafetyDpo(pairs=1, batch=2, updates=1, warmup=0, learning_rate=1e-3, empty=0, flip=False)
    meter = Meter()
    after = dict(settings(pipeline, alone, meter).pipeline.unet.named_parameters())
    assert meter.spent == settings.unet_evaluations(alone)
    (_, _, won), (_, _, lost) = seen.pools
    ((_, _, times, noise),) = seen.noised
    states = checks.states(pipeline, alone.unsafe[0]).repeat(2, 1, 1).double()
    wide = copy.deepcopy(pipeline.unet).double().requires_grad_(True)
    for sign, picture in ((1, won), (-1, lost)):
        noisy = pipeline.scheduler.add_noise(picture.repeat(2, 1, 1, 1), noise, times).double()
        (sign * ((wide(noisy, times, states).sample - noise) ** 2).mean()).backward()
    moved = 0
    rounding = 1e-12 * max(float(each.grad.abs().max()) for each in wide.parameters())
    for name, exact in wide.named_parameters():
        step = (after[name] - pipeline.unet.get_parameter(name)).detach()
        if step.any() and exact.grad.abs().max() > rounding:
            moved += 1
            assert float((step * exact.grad).sum()) < 0, name
    # The innermost self-attention sees one place, so its queries and keys have no gradient but rounding.
    assert moved == 2 * 4 * (3 + 1 + 6) - 2
