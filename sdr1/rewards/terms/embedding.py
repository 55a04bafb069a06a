"""Terms read off a CLIP embedding space: agreement with the prompt, steered towards safety, or turned against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdr1.config.rewards import EmbeddingTerm
from sdr1.rewards.terms.place import Place

if TYPE_CHECKING:
    from sdr1.rewards.terms.place import Term


def check(options: EmbeddingTerm, field: str) -> None:
    if options.model is not None:
        from sdr1.models.embedder import find

        find(options.model, options.checkpoint, field)


def build(options: EmbeddingTerm, place: Place) -> Term:
    from sdr1.rewards.steered import SteeredReward

    return SteeredReward(
        options, place.embedders.get(options.model, options.checkpoint, place.field), place.field
    )
