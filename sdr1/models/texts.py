"""Prompts as the UNet reads them: the text encoder's states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_AT_ONCE = 64
"""Texts of one forward pass."""


def ids(pipeline: Any, texts: Sequence[str]) -> torch.Tensor:
    """Token ids, padded and cut to the tokenizer's length L; shape (N, L), int64."""
    tokenizer = pipeline.tokenizer
    return tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def states(pipeline: Any, texts: Sequence[str]) -> torch.Tensor:
    """Text states, shape (N, L, D), float32, with the gradients that the caller allows."""
    encoder = pipeline.text_encoder
    each = ids(pipeline, texts).to(encoder.device).split(_AT_ONCE)
    return torch.cat([encoder(batch)[0] for batch in each])
