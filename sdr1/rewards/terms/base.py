"""What a reward term is: a named part of the reward with options of its own, which builds its scoring function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from sdr1.base.section import Section

if TYPE_CHECKING:
    import numpy as np

    from sdr1.base.records import Prompt
    from sdr1.models.embedder import Embedders

    Term = Callable[[np.ndarray, Prompt], np.ndarray]
    """Values of RGB uint8 images (N, H, W, 3) made for one prompt, shape (N,), float32; more is better."""


@dataclass(frozen=True)
class Place:
    """What a reward worker offers to the terms it builds."""

    field: str
    """The term's place in the config, for error lines, e.g. `reward.terms.judge`."""
    device: str
    embedders: Embedders


class TermConfig(Section):
    """Options that all kinds of terms share; a kind adds its own, and says how it is built."""

    weight: FiniteFloat = Field(
        1.0, ge=-1e6, le=1e6, description="Factor of this term in the sum of all terms."
    )
    normalise: bool = Field(
        False,
        description="Centre the term in its group and divide by its standard deviation before it is weighted, so that "
        "no term drowns another by its scale.",
    )

    def check(self, field: str) -> None:
        """Look at the files that the options name, without loading a model; `field` is as in `Place`.

        Raises:
            UserError: one of them is wrong.
        """

    def build(self, place: Place) -> Term:
        """The scoring function, in the worker's process; what is heavy is imported here.

        Raises:
            UserError: an option names something that does not load.
        """
        raise NotImplementedError
