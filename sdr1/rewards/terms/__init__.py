"""The kinds of reward terms; a new one is a file beside these and a line in `AnyTerm`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sdr1.rewards.terms.custom import ImportTerm
from sdr1.rewards.terms.embedding import EmbeddingTerm
from sdr1.rewards.terms.http import HttpTerm
from sdr1.rewards.terms.nudenet import NudenetTerm
from sdr1.rewards.terms.q16 import Q16Term

AnyTerm = Annotated[
    EmbeddingTerm  # steered, plain, negative
    | NudenetTerm
    | Q16Term
    | HttpTerm
    | ImportTerm,
    Field(discriminator="kind"),
]
