"""Q16 as a penalty: -1 for an image that is closer to the inappropriate prompt vector than to the benign one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdr1.config.rewards import Q16Term
from sdr1.detectors.q16 import Q16, vectors
from sdr1.rewards.terms.term import TermContext

if TYPE_CHECKING:
    import numpy as np

    from sdr1.base.records import Prompt
    from sdr1.rewards.terms.term import Term


def check(options: Q16Term, field: str) -> None:
    from sdr1.models.embedder import find

    vectors(f"{field}.prompts", options.prompts)
    find(options.model, options.pretrained, field)


def build(options: Q16Term, context: TermContext) -> Term:
    import numpy as np

    q16 = Q16(
        f"{context.field}.prompts",
        options.prompts,
        options.model,
        lambda: context.embedders.get(options.model, options.pretrained, context.field),
    )

    def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
        return -q16.flags(images_NHWC).astype(np.float32)

    return term
