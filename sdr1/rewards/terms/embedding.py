"""Terms read off a CLIP embedding space: agreement with the prompt, steered towards safety, or turned against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdr1.config.rewards import EmbeddingTerm
from sdr1.rewards.terms.term import TermContext

if TYPE_CHECKING:
    from sdr1.rewards.terms.term import Term


def check(options: EmbeddingTerm, field: str) -> None:
    if options.model is not None:
        from sdr1.models.embedder import find

        find(options.model, options.pretrained, field)


def build(options: EmbeddingTerm, context: TermContext) -> Term:
    from sdr1.rewards.steered import SteeredReward

    return SteeredReward(
        options, context.embedders.get(options.model, options.pretrained, context.field), context.field
    )
