"""Advantages, the clipped loss and the KL against torch.distributions, finite differences and their invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from sdr1.method import ddim
from sdr1.method.objective import clipped_loss, gaussian_kl, group_advantages

FAR = 1e9  # a clamp that never acts

rewards = st.lists(st.floats(-5, 5), min_size=2, max_size=16).map(
    lambda xs: torch.tensor(xs, dtype=torch.float64)
)


@given(rewards)
def test_advantages_before_clamping_are_z_scores(rewards_G: torch.Tensor) -> None:
    values = rewards_G.numpy()
    assume(values.std() > 1e-3)
    advantages = group_advantages(rewards_G, FAR)
    np.testing.assert_allclose(
        advantages, (values - values.mean()) / values.std(ddof=1), rtol=1e-4, atol=1e-9
    )
    assert advantages.sum().item() == pytest.approx(0, abs=1e-6)


@given(rewards, st.floats(-100, 100), st.floats(0.1, 50))
def test_advantages_do_not_feel_shift_and_scale_of_rewards(
    rewards_G: torch.Tensor, shift: float, scale: float
) -> None:
    assume(rewards_G.std() > 1e-2)
    moved = group_advantages(rewards_G * scale + shift, 2.5)
    torch.testing.assert_close(moved, group_advantages(rewards_G, 2.5), rtol=1e-4, atol=1e-4)


@given(rewards, st.floats(0.1, 5))
def test_advantages_are_clamped_and_keep_the_rewards_order(rewards_G: torch.Tensor, clip: float) -> None:
    advantages = group_advantages(rewards_G, clip)
    assert advantages.abs().max() <= clip
    assert (advantages[rewards_G.argsort()].diff() >= 0).all()


def test_pooled_deviation_takes_the_place_of_the_groups_own() -> None:
    rewards_G = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(group_advantages(rewards_G, FAR, std=2.0), torch.tensor([-1.0, -0.5, 1.5]))
    torch.testing.assert_close(group_advantages(rewards_G, 1.2, std=2.0), torch.tensor([-1.0, -0.5, 1.2]))


@pytest.mark.parametrize("reward", [0.25, -0.3, 0.1, 1e-6, -1e4, 0.0])
@pytest.mark.parametrize("std", [None, 0.0, 0.2])
def test_equal_rewards_give_no_advantage_and_no_nan(reward: float, std: float | None) -> None:
    for size in (2, 3, 7, 16, 100):
        assert group_advantages(torch.full((size,), reward), 2.5, std).eq(0).all()


def test_a_spread_of_rounding_is_none_and_a_real_one_is_kept() -> None:
    rounded = torch.full((16,), -0.3)
    rounded[5:] = rounded[5:].nextafter(torch.tensor(0.0))
    assert group_advantages(rounded, 2.5).eq(0).all()
    real = rounded + torch.linspace(0, 1e-5, 16)
    expected = real.double().numpy()
    expected = (expected - expected.mean()) / (expected.std(ddof=1) + 1e-8)
    np.testing.assert_allclose(group_advantages(real, 2.5), expected, rtol=1e-6)


def test_ratio_one_gives_minus_the_advantage_with_its_gradient() -> None:
    # On-policy the clip is not in force: loss -A, and d loss / d log p = -A for either sign.
    log_probs = torch.tensor([-1.5, 0.3, 2.0], requires_grad=True)
    advantages = torch.tensor([2.0, -1.0, 0.5])
    losses, ratio = clipped_loss(log_probs, log_probs.detach(), advantages, 1e-4)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), -advantages)
    torch.testing.assert_close(log_probs.grad, -advantages)
    assert ratio.eq(1).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient_flows"),
    [
        (1.5, 2.0, -2.4, False),  # a better sample, already more likely by more than the clip: no more push
        (1.5, -2.0, 3.0, True),  # a worse sample made more likely: the full penalty
        (0.5, 2.0, -1.0, True),  # a better sample made less likely: pulled back
        (0.5, -2.0, 1.6, False),  # a worse sample, already rarer than the clip
        (1.1, 2.0, -2.2, True),  # inside
        (0.9, -2.0, 1.8, True),
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, expected: float, gradient_flows: bool) -> None:
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    losses, rho = clipped_loss(log_prob, old, advantages, 0.2)
    losses.sum().backward()
    assert losses.item() == pytest.approx(expected)
    assert rho.item() == pytest.approx(ratio)
    assert log_prob.grad.item() == pytest.approx(-advantage * ratio if gradient_flows else 0)


@given(st.floats(-1, 1), st.floats(-3, 3), st.floats(1e-4, 0.5))
def test_the_loss_is_a_pessimistic_bound_of_the_plain_surrogate(
    log_ratio: float, advantage: float, clip: float
) -> None:
    values = (torch.tensor([v], dtype=torch.float64) for v in (log_ratio, 0.0, advantage))
    losses, rho = clipped_loss(*values, clip)
    assert losses.item() >= -advantage * rho.item() - 1e-12


def test_gaussian_kl_is_the_mean_of_torch_kl_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, reference = (torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.05, 0.3, 1.0, 2.0]).view(-1, 1, 1, 1)
    exact = kl_divergence(*(Normal(m.double(), sigma.double()) for m in (mean, reference))).mean(
        dim=(1, 2, 3)
    )
    torch.testing.assert_close(gaussian_kl(mean, reference, sigma).double(), exact, rtol=1e-5, atol=1e-6)
    assert gaussian_kl(mean, mean, sigma).eq(0).all()


def test_gradient_of_the_whole_loss_by_finite_differences() -> None:
    # A linear "network" from 3 parameters to the means of 5 transitions; float64, some ratios inside the clip range and
    # some outside, with the KL on top as the learner adds it.
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features, offset, samples, reference = (
        draw(5, 2, 2, 2, 3),
        draw(5, 2, 2, 2),
        draw(5, 2, 2, 2),
        draw(5, 2, 2, 2),
    )
    sigma = torch.linspace(0.5, 1.5, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    advantages, start = draw(5), draw(3)
    old = ddim.log_prob(samples, features @ start + offset, sigma)

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        mean = features @ parameters + offset
        surrogate, _ = clipped_loss(ddim.log_prob(samples, mean, sigma), old, advantages, 0.05)
        return (surrogate + 0.3 * gaussian_kl(mean, reference, sigma)).mean()

    at = (start + 0.1 * draw(3)).requires_grad_()
    _, ratio = clipped_loss(ddim.log_prob(samples, features @ at + offset, sigma), old, advantages, 0.05)
    outside = (ratio - 1).abs() > 0.05
    assert outside.any()
    assert not outside.all()
    loss(at).backward()
    step = 1e-6
    for i in range(3):
        delta = torch.zeros(3, dtype=torch.float64)
        delta[i] = step
        numeric = (loss(at.detach() + delta) - loss(at.detach() - delta)) / (2 * step)
        assert at.grad[i].item() == pytest.approx(numeric.item(), rel=1e-6, abs=1e-9)
