"""The safety direction in a text embedding space, and prompts' embeddings moved along it.

Dimensions: B prompts, D embedding size. Embeddings are L2-normalised (SafeDiffusion-R1, "steered reward").
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def safety_direction(safe_SD: torch.Tensor, unsafe_UD: torch.Tensor) -> torch.Tensor:
    """Unit vector, shape (D,), from the mean unsafe to the mean safe anchor embedding.

    Without safe anchors, shape (0, D), it points away from the unsafe ones (the paper's aggressive variant).

    Raises:
        ValueError: there is no unsafe anchor, or both means coincide, so that no direction exists.
    """
    if len(unsafe_UD) == 0:
        raise ValueError("a safety direction needs at least one unsafe anchor")
    toward = safe_SD.mean(0) if len(safe_SD) else torch.zeros_like(unsafe_UD[0])
    difference = toward - unsafe_UD.mean(0)
    if not difference.norm() > 1e-6:
        raise ValueError("safe and unsafe anchors have the same mean embedding: no safety direction")
    return normalize(difference, dim=0)


def safety_score(text_BD: torch.Tensor, direction_D: torch.Tensor) -> torch.Tensor:
    """Cosine z.v of each prompt with the safety direction, shape (B,); negative leans unsafe."""
    return text_BD @ direction_D


def translate(text_BD: torch.Tensor, direction_D: torch.Tensor, alpha: float) -> torch.Tensor:
    """Steered targets norm(z + alpha v), shape (B, D)."""
    return normalize(text_BD + alpha * direction_D, dim=-1)


def project(text_BD: torch.Tensor, direction_D: torch.Tensor, alpha: float) -> torch.Tensor:
    """Steered targets norm(z - (z.v) v + alpha v), shape (B, D): the prompt's own share of v is replaced."""
    own_B1 = safety_score(text_BD, direction_D).unsqueeze(-1)
    return normalize(text_BD + (alpha - own_B1) * direction_D, dim=-1)
