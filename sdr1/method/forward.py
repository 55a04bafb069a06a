"""An objective on the forward process: noise a final latent again, and move the denoising error by its advantage.

It needs the final latent and its reward alone, so any solver may draw. x_t = a x_0 + s e with a = sqrt(abar_t),
s = sqrt(1 - abar_t), e standard normal; E is the policy's prediction of e. Sources: advantage-weighted matching
(arXiv 2509.25050) and DiffusionNFT (arXiv 2509.16117), both in epsilon instead of velocity.

Advantage-weighted matching takes minus the weighted error, - w |E - e|^2, for the log-prob of GRPO's clipped ratio
(`sdr1.method.objective.clipped_loss`): at the old policy the gradient is that of A w |E - e|^2, and the clip bounds what
A < 0 would push without end. DiffusionNFT's form is bounded by itself.

Dimensions: B pairs of a sample and a timestep, K timesteps of a sample, C x H x W a latent.
"""

from __future__ import annotations

from typing import Literal

import torch

Weight = Literal["uniform", "inverse_signal", "capped_snr"]


def noised(latents_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, alpha_bar_B: torch.Tensor) -> torch.Tensor:
    """x_t of clean latents, shape (B, C, H, W)."""
    alpha_bar = alpha_bar_B.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents_BCHW + (1 - alpha_bar).sqrt() * noise_BCHW


def stratified_timesteps(count: int, low: int, high: int, generator: torch.Generator) -> torch.Tensor:
    """One uniform timestep of each of `count` equal parts of [low, high), ascending, shape (K,), int64."""
    edges = low + (high - low) * torch.arange(count + 1, dtype=torch.float64) / count
    drawn = edges[:-1] + (edges[1:] - edges[:-1]) * torch.rand(
        count, generator=generator, dtype=torch.float64
    )
    return drawn.long()


def timestep_weight(alpha_bar_B: torch.Tensor, kind: Weight, cap: float = 5.0) -> torch.Tensor:
    """Weight of the error in epsilon, shape (B,).

    `uniform`: 1. `inverse_signal`: 1 / a^2, which leans on noisy steps. `capped_snr`: min(SNR, cap) / SNR with
    SNR = a^2 / s^2, the min-SNR weight, which spares the least noisy ones.
    """
    if kind == "uniform":
        return torch.ones_like(alpha_bar_B)
    if kind == "inverse_signal":
        return 1 / alpha_bar_B
    snr = alpha_bar_B / (1 - alpha_bar_B)
    return snr.clamp(max=cap) / snr


def denoising_error(prediction_BCHW: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
    """Squared error of the predicted noise, averaged over C, H, W, shape (B,)."""
    return ((prediction_BCHW - noise_BCHW) ** 2).mean(dim=(1, 2, 3))


def bounded_loss(
    prediction_BCHW: torch.Tensor,
    old_BCHW: torch.Tensor,
    noise_BCHW: torch.Tensor,
    advantages_B: torch.Tensor,
    weight_B: torch.Tensor,
    advantage_bound: float,
    strength: float = 1.0,
) -> torch.Tensor:
    """DiffusionNFT's form, shape (B,): the prediction is pulled towards the noise on good samples, and its mirror image
    at the old policy on bad ones.

    r = (1 + A / bound) / 2 in [0, 1]; E+ = (1 - b) E_old + b E, E- = (1 + b) E_old - b E with b = `strength`; the loss is
    bound w (r |E+ - e|^2 + (1 - r) |E- - e|^2) / b. It has a minimum for every A. At the old policy its gradient is that
    of A w |E - e|^2, as the clipped form's is.
    """
    share_B = (0.5 + advantages_B / (2 * advantage_bound)).clamp(0, 1)
    towards = old_BCHW + strength * (prediction_BCHW - old_BCHW)
    mirrored = old_BCHW - strength * (prediction_BCHW - old_BCHW)
    good, bad = denoising_error(towards, noise_BCHW), denoising_error(mirrored, noise_BCHW)
    return advantage_bound * weight_B * (share_B * good + (1 - share_B) * bad) / strength
