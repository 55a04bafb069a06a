"""The forward process against closed forms, finite differences in float64, and each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdr1.method.forward import (
    bounded_loss,
    denoising_error,
    noised,
    stratified_timesteps,
    timestep_weight,
)
from sdr1.method.objective import clipped_loss

ADVANTAGES = torch.tensor([1.5, -2.0, 0.0, 0.4], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 3.0, 2.0, 0.2], dtype=torch.float64)


def normal(seed: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matching_loss(prediction, old, noise, advantages, clip_range=0.2) -> torch.Tensor:
    """Advantage-weighted matching: minus the weighted error as the log-prob of the clipped ratio."""
    log_probs, old_log_probs = (-WEIGHTS * denoising_error(each, noise) for each in (prediction, old))
    return clipped_loss(log_probs, old_log_probs, advantages, clip_range)[0]


def gradient(loss_of, prediction: torch.Tensor) -> torch.Tensor:
    given_ = prediction.clone().requires_grad_()
    loss_of(given_).sum().backward()
    return given_.grad


def slope(loss_of, prediction: torch.Tensor, place: tuple[int, ...], h: float = 1e-6) -> float:
    up, down = prediction.clone(), prediction.clone()
    up[place] += h
    down[place] -= h
    return ((loss_of(up).sum() - loss_of(down).sum()) / (2 * h)).item()


def test_noised_latents_have_the_schedules_moments():
    latents = torch.full((20_000, 1, 2, 2), 3.0)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    made = noised(latents, noise, torch.full((20_000,), 0.36))
    assert made.mean().item() == pytest.approx(0.6 * 3, abs=0.01)
    assert made.std().item() == pytest.approx(0.8, abs=0.01)


@given(st.integers(1, 30), st.integers(0, 400), st.integers(30, 600), st.integers(0, 2**31))
def test_one_timestep_falls_into_each_part(count, low, width, seed):
    times = stratified_timesteps(count, low, low + width, torch.Generator().manual_seed(seed))
    parts = (times - low) * count // width
    assert times.min() >= low
    assert times.max() < low + width
    # A part whose edge is no whole number gives its last timestep's share to the next whole one below.
    assert ((parts - torch.arange(count)).abs() <= 1).all()
    assert (times.diff() >= 0).all()


def test_weights_by_hand():
    bars = torch.tensor([0.9, 0.5, 0.1])
    assert timestep_weight(bars, "uniform").tolist() == [1, 1, 1]
    assert torch.allclose(timestep_weight(bars, "inverse_signal"), torch.tensor([1 / 0.9, 2, 10]))
    assert torch.allclose(timestep_weight(bars, "capped_snr", cap=5.0), torch.tensor([5 / 9, 1, 1]))


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 1, 2, 0), (2, 0, 1, 1), (3, 1, 0, 2)])
def test_gradients_are_the_finite_differences(place):
    noise, old, prediction = normal(1), normal(2), normal(2) + 0.01 * normal(3)

    def bounded(p):
        return bounded_loss(p, old, noise, ADVANTAGES, WEIGHTS, advantage_bound=2.5, strength=0.7)

    for loss in (lambda p: matching_loss(p, old, noise, ADVANTAGES), bounded):
        found = gradient(loss, prediction)[place].item()
        assert found == pytest.approx(slope(loss, prediction, place), rel=1e-5, abs=1e-8)


def test_at_the_old_policy_all_forms_have_the_gradient_of_the_weighted_error():
    noise, old = normal(1), normal(2)
    expected = gradient(lambda p: ADVANTAGES * WEIGHTS * denoising_error(p, noise), old)
    matching = gradient(lambda p: matching_loss(p, old, noise, ADVANTAGES), old)
    assert torch.allclose(matching, expected, rtol=1e-12)
    for strength in (0.5, 1.0):
        bounded = gradient(
            lambda p, b=strength: bounded_loss(p, old, noise, ADVANTAGES, WEIGHTS, 2.5, b), old
        )
        assert torch.allclose(bounded, expected, rtol=1e-12)


def test_the_clip_ends_what_a_bad_sample_pushes():
    noise, old = normal(1), normal(2)
    far = old + 5 * (old - noise)
    bad = torch.full((4,), -1.0, dtype=torch.float64)

    assert (gradient(lambda p: matching_loss(p, old, noise, bad), far) == 0).all()
    assert (gradient(lambda p: matching_loss(p, old, noise, bad), old) != 0).all()


@given(st.floats(-2.5, 2.5))
def test_the_bounded_form_has_a_minimum_where_the_closed_form_says(advantage):
    """r (E - e) = (1 - r) (E_m - e), so E = E_old + (2 r - 1) (e - E_old) with strength 1."""
    noise, old = normal(1, 1), normal(2, 1)
    best = old + advantage / 2.5 * (noise - old)
    one = torch.ones(1, dtype=torch.float64)
    found = gradient(lambda p: bounded_loss(p, old, noise, advantage * one, one, 2.5), best)
    assert found.abs().max() < 1e-12
