"""Group-relative advantages, the clipped surrogate and the KL to the base (SafeDiffusion-R1, GRPO update)."""

from __future__ import annotations

import torch


def standardised(values_G: torch.Tensor, std: float | None = None) -> torch.Tensor:
    """Values centred in their group and divided by a standard deviation, shape (G,), in their dtype.

    `std` is the deviation when it is not the group's own (unbiased) one. Values that differ by no more than float32
    resolves are equal, and equal values give exactly zero: computed in float64, or rounding would be blown up to 1.
    """
    exact_G = values_G.double()
    own = exact_G.std()
    if own <= torch.finfo(torch.float32).eps * exact_G.abs().max():
        return torch.zeros_like(values_G)
    scale = own if std is None else std
    return ((exact_G - exact_G.mean()) / (scale + 1e-8)).to(values_G.dtype)


def group_advantages(rewards_G: torch.Tensor, clip: float, std: float | None = None) -> torch.Tensor:
    """Rewards standardised in their group, clamped to +-clip; shape (G,), in their dtype.

    `std` is the pooled deviation when it is not the group's own.
    """
    return standardised(rewards_G, std).clamp(-clip, clip)


def clipped_loss(
    log_probs_B: torch.Tensor, old_log_probs_B: torch.Tensor, advantages_B: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-transition loss max(-A rho, -A clip(rho)) and ratio rho, each shape (B,)."""
    ratio = (log_probs_B - old_log_probs_B).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages_B * ratio, -advantages_B * clipped), ratio


def gaussian_kl(
    mean_BCHW: torch.Tensor, reference_BCHW: torch.Tensor, sigma_B111: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, sigma^2) || N(reference, sigma^2)) averaged over C, H, W, shape (B,), in nats a dimension."""
    return ((mean_BCHW - reference_BCHW) ** 2 / (2 * sigma_B111**2)).mean(dim=(1, 2, 3))
