"""One stochastic DDIM step as a Gaussian: its mean, its standard deviation and a sample's log-prob.

Everything is computed in float32: sigma spans a decade over a chain, and a log-prob rounded to bf16 leaves the
clip range before any update.
"""

from __future__ import annotations

import math

import torch


def sigma(alpha_bar: torch.Tensor, alpha_bar_prev: torch.Tensor, eta: float) -> torch.Tensor:
    """Standard deviation of x_{t-1} given x_t (DDIM eq. 16), same shape as the inputs, float32."""
    alpha_bar, alpha_bar_prev = alpha_bar.float(), alpha_bar_prev.float()
    return eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)).sqrt()


def split_prediction(
    prediction: torch.Tensor, latents: torch.Tensor, alpha_bar: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimates (x_0, epsilon) behind a model output, each float32 in the latents' shape.

    `alpha_bar` broadcasts against the latents; `prediction_type` is diffusers' name.

    Raises:
        ValueError: the prediction type is none of epsilon, v_prediction, sample.
    """
    prediction, latents = prediction.float(), latents.float()
    signal, noise = alpha_bar.float().sqrt(), (1 - alpha_bar.float()).sqrt()
    if prediction_type == "epsilon":
        return (latents - noise * prediction) / signal, prediction
    if prediction_type == "v_prediction":
        return signal * latents - noise * prediction, signal * prediction + noise * latents
    if prediction_type == "sample":
        return prediction, (latents - signal * prediction) / noise
    raise ValueError(f"prediction type {prediction_type!r}: use epsilon, v_prediction or sample")


def prediction_of(
    x0: torch.Tensor, epsilon: torch.Tensor, alpha_bar: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The model output whose estimates are these, in their shape; the inverse of `split_prediction`.

    Raises:
        ValueError: the prediction type is none of epsilon, v_prediction, sample.
    """
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x0
    outputs = {"epsilon": epsilon, "sample": x0}
    if prediction_type not in outputs:
        raise ValueError(f"prediction type {prediction_type!r}: use epsilon, v_prediction or sample")
    return outputs[prediction_type]


def transition(
    prediction_BCHW: torch.Tensor,
    latents_BCHW: torch.Tensor,
    alpha_bar_B: torch.Tensor,
    alpha_bar_prev_B: torch.Tensor,
    eta: float,
    prediction_type: str = "epsilon",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (B, C, H, W) and standard deviation (B, 1, 1, 1) of x_{t-1}, float32 (DDIM eq. 12)."""
    alpha_bar, alpha_bar_prev = (a.float().view(-1, 1, 1, 1) for a in (alpha_bar_B, alpha_bar_prev_B))
    x0, epsilon = split_prediction(prediction_BCHW, latents_BCHW, alpha_bar, prediction_type)
    deviation = sigma(alpha_bar, alpha_bar_prev, eta)
    # Rounding may push the radicand a hair below zero on the last step, where it is zero.
    direction = (1 - alpha_bar_prev - deviation**2).clamp(min=0).sqrt()
    return alpha_bar_prev.sqrt() * x0 + direction * epsilon, deviation


def noise_part(
    mean_BCHW: torch.Tensor,
    latents_BCHW: torch.Tensor,
    alpha_bar_B: torch.Tensor,
    alpha_bar_prev_B: torch.Tensor,
) -> torch.Tensor:
    """What a prediction put into a step's mean: epsilon times a number of the step's own, shape (B, C, H, W).

    The mean is linear in x_t and epsilon (DDIM eq. 12); without the former the latter is left.
    """
    alpha_bar, alpha_bar_prev = (a.float().view(-1, 1, 1, 1) for a in (alpha_bar_B, alpha_bar_prev_B))
    return mean_BCHW - (alpha_bar_prev / alpha_bar).sqrt() * latents_BCHW


def log_prob(next_BCHW: torch.Tensor, mean_BCHW: torch.Tensor, sigma_B111: torch.Tensor) -> torch.Tensor:
    """Gaussian log-density of x_{t-1}, averaged over C, H, W (the scale of the paper's clip range), shape (B,)."""
    density = (
        -((next_BCHW - mean_BCHW) ** 2) / (2 * sigma_B111**2) - sigma_B111.log() - 0.5 * math.log(2 * math.pi)
    )
    return density.mean(dim=(1, 2, 3))
