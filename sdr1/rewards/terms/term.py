"""What a reward term is, and what the file of a kind of terms has to offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from sdr1.base.records import Prompt
    from sdr1.models.embedder import Embedders

    Term = Callable[[np.ndarray, Prompt], np.ndarray]
    """Values of RGB uint8 images (N, H, W, 3) made for one prompt, shape (N,), float32; more is better."""


@dataclass(frozen=True)
class TermContext:
    """What a reward worker offers to the terms it builds."""

    field: str
    """The term's place in the config, for error lines, e.g. `reward.terms.judge`."""
    device: str
    embedders: Embedders


class TermKind(Protocol):
    """What the file of a kind of terms has; `options` are of the kind's class in `sdr1.config.rewards`."""

    def check(self, options: Any, field: str) -> None:
        """Look at the files that the options name, without loading a model; `field` is as in `TermContext`.

        Raises:
            UserError: one of them is wrong.
        """

    def build(self, options: Any, context: TermContext) -> Term:
        """The scoring function, in the worker's process; what is heavy is imported here.

        Raises:
            UserError: an option names something that does not load.
        """
