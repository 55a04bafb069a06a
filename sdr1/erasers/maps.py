"""Cross-attention's probabilities: which places of a picture look at which tokens of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from sdr1.erasers import layers
from sdr1.models import texts

Tokens = Literal["words", "padding", "both"]
"""Of a prompt: those that name the concept, the end token and all behind it, or both. A text encoder that reads from left to
right keeps in the padding what the whole prompt says."""


@contextmanager
def recorded(unet: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Context in which a call of the UNet leaves each cross-attention's probabilities by name, shape (B, heads, H x W, L),
    with the gradients that the caller allows."""
    found: dict[str, torch.Tensor] = {}

    def record(name: str, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query = attention.head_to_batch_dim(attention.to_q(args[0]))
        key = attention.head_to_batch_dim(attention.to_k(kwargs["encoder_hidden_states"]))
        scores = attention.get_attention_scores(query, key)
        found[name] = scores.unflatten(0, (len(args[0]), attention.heads))

    handles = [
        module.register_forward_pre_hook(
            lambda held, args, kwargs, name=name: record(name, held, args, kwargs), with_kwargs=True
        )
        for name, module in layers.cross_attentions(unet).items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def ends(pipeline: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Position of each prompt's end token, shape (N,), int64."""
    return (texts.ids(pipeline, prompts) == pipeline.tokenizer.eos_token_id).int().argmax(1)


def tokens(pipeline: Any, prompts: Sequence[str], words: Sequence[str], which: Tokens) -> torch.Tensor:
    """Which positions of each prompt are meant, shape (N, L), bool. Of a prompt that holds no part of a word, all its words
    are: it says the concept in others."""
    ids = texts.ids(pipeline, prompts)
    places, end = torch.arange(ids.shape[1])[None], ends(pipeline, prompts)[:, None]
    parts = pipeline.tokenizer(list(words), add_special_tokens=False).input_ids
    within = (places > 0) & (places < end)
    named = within & torch.isin(ids, torch.tensor([part for each in parts for part in each]))
    named = torch.where(named.any(1, keepdim=True), named, within)
    padding = places >= end
    return {"words": named, "padding": padding, "both": named | padding}[which]
