"""The DDIM transition against float64 closed forms, torch.distributions and diffusers' own scheduler."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from sdr1.method import ddim

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_scheduler(prediction_type: str = "epsilon", steps: int = 8) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def alpha_bars(scheduler: DDIMScheduler, timestep: int) -> tuple[torch.Tensor, torch.Tensor]:
    previous = timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    after = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
    return scheduler.alphas_cumprod[timestep], after


@given(st.floats(1e-4, 0.98), st.floats(1e-3, 1), st.floats(0, 1))
def test_sigma_is_the_ddpm_posterior_deviation_scaled_by_eta(
    alpha_bar: float, share: float, eta: float
) -> None:
    # DDPM's other form: posterior variance beta_t (1 - abar_prev) / (1 - abar_t) with alpha_t = abar_t / abar_prev.
    alpha_bar_prev = alpha_bar + share * (0.999 - alpha_bar)
    beta = 1 - alpha_bar / alpha_bar_prev
    expected = eta * math.sqrt(beta * (1 - alpha_bar_prev) / (1 - alpha_bar))
    actual = ddim.sigma(torch.tensor(alpha_bar), torch.tensor(alpha_bar_prev), eta)
    # 1 - a / b cancels in float32: its absolute error is a few ulp of 1.
    assert actual.item() ** 2 == pytest.approx(expected**2, abs=1e-6, rel=1e-4)
    assert actual.dtype == torch.float32


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_prediction_made_of_its_parts_is_split_into_them(prediction_type: str) -> None:
    x0, epsilon = randn(5, 4, 8, 8, seed=1), randn(5, 4, 8, 8, seed=2)
    alpha_bar = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97]).view(-1, 1, 1, 1)
    made = ddim.prediction_of(x0, epsilon, alpha_bar, prediction_type)
    latents = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * epsilon
    for found, expected in zip(
        ddim.split_prediction(made, latents, alpha_bar, prediction_type), (x0, epsilon)
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="use epsilon"):
        ddim.prediction_of(x0, epsilon, alpha_bar, "flow")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_split_prediction_recovers_what_the_latents_were_mixed_from(prediction_type: str) -> None:
    x0, epsilon = randn(5, 4, 8, 8, seed=1), randn(5, 4, 8, 8, seed=2)
    alpha_bar = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.97]).view(-1, 1, 1, 1)
    phi = torch.asin((1 - alpha_bar).sqrt())
    latents = phi.cos() * x0 + phi.sin() * epsilon
    prediction = {
        "epsilon": epsilon,
        "v_prediction": phi.cos() * epsilon - phi.sin() * x0,
        "sample": x0,
    }[prediction_type]
    found_x0, found_epsilon = ddim.split_prediction(prediction, latents, alpha_bar, prediction_type)
    torch.testing.assert_close(found_x0, x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_epsilon, epsilon, rtol=1e-4, atol=1e-4)


def test_split_prediction_refuses_an_unknown_type_by_name() -> None:
    with pytest.raises(ValueError, match="'flow'.*v_prediction"):
        ddim.split_prediction(randn(1, 1, 1, 1), randn(1, 1, 1, 1), torch.tensor(0.5), "flow")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_transition_takes_diffusers_own_step(prediction_type: str, eta: float) -> None:
    scheduler = make_scheduler(prediction_type)
    latents, prediction, noise = (randn(1, 4, 8, 8, seed=seed) for seed in range(3))
    for timestep in scheduler.timesteps.tolist():
        bar, after = alpha_bars(scheduler, timestep)
        mean, deviation = ddim.transition(
            prediction, latents, bar.view(1), after.view(1), eta, prediction_type
        )
        expected = scheduler.step(prediction, timestep, latents, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(mean + deviation * noise, expected, rtol=1e-4, atol=1e-5)
        assert deviation.shape == (1, 1, 1, 1)
        assert (deviation == 0).all() == (eta == 0)


@given(st.floats(0.01, 0.9), st.floats(0.01, 1), st.floats(0, 1))
def test_transition_in_float64_by_the_paper_other_form(alpha_bar: float, share: float, eta: float) -> None:
    # DDIM eq. 7: q(x_{t-1} | x_t, x_0) = N(sqrt(abar_prev) x_0 + sqrt(1 - abar_prev - sigma^2)
    # * (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t), sigma^2), written in x_0 instead of epsilon.
    alpha_bar_prev = alpha_bar + share * (0.999 - alpha_bar)
    x0, latents = (
        randn(2, 3, 2, 2, seed=3, dtype=torch.float64),
        randn(2, 3, 2, 2, seed=4, dtype=torch.float64),
    )
    variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    towards = (latents - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)
    expected = math.sqrt(alpha_bar_prev) * x0 + math.sqrt(max(0, 1 - alpha_bar_prev - variance)) * towards
    bars = (torch.full((2,), value) for value in (alpha_bar, alpha_bar_prev))
    mean, _ = ddim.transition(x0, latents, *bars, eta, "sample")
    torch.testing.assert_close(mean.double(), expected, rtol=1e-3, atol=1e-3)


def test_transition_keeps_each_sample_apart() -> None:
    latents, prediction = randn(3, 4, 2, 2, seed=1), randn(3, 4, 2, 2, seed=2)
    bar, after = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.3, 0.7, 0.95])
    means, deviations = ddim.transition(prediction, latents, bar, after, 1.0)
    for i in range(3):
        alone = ddim.transition(
            prediction[i : i + 1], latents[i : i + 1], bar[i : i + 1], after[i : i + 1], 1.0
        )
        torch.testing.assert_close(means[i : i + 1], alone[0], rtol=0, atol=0)
        torch.testing.assert_close(deviations[i : i + 1], alone[1], rtol=0, atol=0)


def test_the_noisy_chain_of_a_known_gaussian_keeps_its_variance() -> None:
    # Data N(0, 1) in every dimension: the exact epsilon is sqrt(1 - abar_t) x_t, and x_t stays N(0, 1)
    # at eta 0 and 1 up to the step size.
    scheduler = make_scheduler(steps=200)
    for eta in (0.0, 1.0):
        latents = randn(4000, 1, 2, 2, seed=5)
        for i, timestep in enumerate(scheduler.timesteps.tolist()):
            bar, after = (value.expand(len(latents)) for value in alpha_bars(scheduler, timestep))
            epsilon = (1 - bar).sqrt().view(-1, 1, 1, 1) * latents
            mean, deviation = ddim.transition(epsilon, latents, bar, after, eta)
            latents = mean + deviation * randn(*latents.shape, seed=100 + i)
        assert latents.var().item() == pytest.approx(1, abs=0.05)


def test_a_bf16_model_output_is_accounted_for_in_float32() -> None:
    latents, prediction = randn(2, 4, 4, 4, seed=1), randn(2, 4, 4, 4, seed=2).bfloat16()
    bar, after = torch.tensor([0.1, 0.5]), torch.tensor([0.3, 0.7])
    mean, deviation = ddim.transition(prediction, latents, bar, after, 1.0)
    expected, _ = ddim.transition(prediction.float(), latents, bar, after, 1.0)
    assert mean.dtype == deviation.dtype == torch.float32
    torch.testing.assert_close(mean, expected, rtol=0, atol=0)


def test_split_prediction_leaves_half_precision_at_once() -> None:
    prediction, latents = randn(2, 4, 4, 4, seed=1).bfloat16(), randn(2, 4, 4, 4, seed=2).bfloat16()
    for prediction_type in PREDICTION_TYPES:
        half = ddim.split_prediction(prediction, latents, torch.tensor(0.3), prediction_type)
        full = ddim.split_prediction(
            prediction.double(), latents.double(), torch.tensor(0.3), prediction_type
        )
        for actual, expected in zip(half, full, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_nothing_is_nan_at_the_ends_of_a_schedule(eta: float) -> None:
    # The last step may end at alpha_bar 1; a zero-terminal-SNR schedule begins at 0, where all of 1 - abar_prev is
    # sigma^2 and rounding takes the rest below zero for some values.
    after = torch.cat([torch.linspace(0.01, 0.9, 500), torch.ones(1)])
    bar = torch.cat([torch.zeros(500), torch.tensor([0.9])])
    latents, prediction = randn(501, 1, 2, 2, seed=1), randn(501, 1, 2, 2, seed=2)
    mean, deviation = ddim.transition(prediction, latents, bar, after, eta, "v_prediction")
    assert mean.isfinite().all()
    assert deviation.isfinite().all()
    assert deviation[-1].item() == 0


def test_log_prob_is_the_mean_of_independent_normals() -> None:
    sample, mean = randn(6, 4, 8, 8, seed=1), randn(6, 4, 8, 8, seed=2)
    sigma = torch.tensor([0.01, 0.05, 0.2, 0.7, 1.0, 3.0]).view(-1, 1, 1, 1)
    expected = Normal(mean.double(), sigma.double()).log_prob(sample.double()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(ddim.log_prob(sample, mean, sigma).double(), expected, rtol=1e-5, atol=1e-6)


def test_log_prob_gradient_is_the_score() -> None:
    # d/d mean of the mean over N dimensions of log N(x; mean, sigma) is (x - mean) / (sigma^2 N).
    sample, sigma = randn(2, 3, 4, 4, seed=1), torch.tensor([0.5, 2.0]).view(-1, 1, 1, 1)
    mean = randn(2, 3, 4, 4, seed=2).requires_grad_()
    ddim.log_prob(sample, mean, sigma).sum().backward()
    torch.testing.assert_close(mean.grad, (sample - mean.detach()) / (sigma**2 * 48))


def test_the_noise_part_of_a_mean_is_proportional_to_epsilon() -> None:
    latents, epsilon = randn(3, 4, 8, 8, seed=1), randn(3, 4, 8, 8, seed=2)
    bar, prev = torch.tensor([0.02, 0.5, 0.9]), torch.tensor([0.1, 0.6, 0.99])
    mean, _ = ddim.transition(epsilon, latents, bar, prev, eta=1.0)
    part = ddim.noise_part(mean, latents, bar, prev)
    factor = (part * epsilon).flatten(1).sum(1) / (epsilon**2).flatten(1).sum(1)
    assert torch.allclose(part, factor.view(-1, 1, 1, 1) * epsilon, atol=1e-4)
    assert (factor < 0).all()
