"""Q16 as a penalty: -1 for an image that is closer to the inappropriate prompt vector than to the benign one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdr1.detectors.q16 import MODEL, Q16, vectors
from sdr1.rewards.terms.base import Place, TermConfig

if TYPE_CHECKING:
    import numpy as np

    from sdr1.base.records import Prompt
    from sdr1.rewards.terms.base import Term


class Q16Term(TermConfig):
    kind: Literal["q16"]
    prompts: Path = Field(
        description="The two learned prompt vectors, row 0 benign and row 1 inappropriate: .npy, or the published "
        "pickle (.p, .pt), which is read without executing anything."
    )
    model: str = Field(MODEL, description="open_clip model whose space the vectors live in.")
    checkpoint: Path | None = Field(Path("openai"), description="Its weights, as reward.checkpoint.")

    def check(self, field: str) -> None:
        from sdr1.models.embedder import find

        vectors(f"{field}.prompts", self.prompts)
        find(self.model, self.checkpoint, field)

    def build(self, place: Place) -> Term:
        import numpy as np

        q16 = Q16(
            f"{place.field}.prompts",
            self.prompts,
            self.model,
            lambda: place.embedders.get(self.model, self.checkpoint, place.field),
        )

        def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
            return -q16.flags(images_NHWC).astype(np.float32)

        return term
