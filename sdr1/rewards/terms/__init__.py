"""The kinds of reward terms; a new one is its options in `sdr1.config.rewards`, a file beside these and a line here."""

from __future__ import annotations

from sdr1.config.rewards import EmbeddingTerm, HttpTerm, ImportTerm, NudenetTerm, Q16Term, TermConfig
from sdr1.rewards.terms import custom, embedding, http, nudenet, q16
from sdr1.rewards.terms.term import TermKind

KINDS: dict[type[TermConfig], TermKind] = {
    EmbeddingTerm: embedding,  # steered, plain, negative
    NudenetTerm: nudenet,
    Q16Term: q16,
    HttpTerm: http,
    ImportTerm: custom,
}


def kind(options: TermConfig) -> TermKind:
    """What checks and builds a term with these options."""
    return next(KINDS[each] for each in type(options).__mro__ if each in KINDS)
