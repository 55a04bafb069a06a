"""NudeNet as a penalty: -1 for an image in which it detects one of the exposed classes, else 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, FiniteFloat

from sdr1.errors import UserError
from sdr1.rewards.terms.base import Place, TermConfig

if TYPE_CHECKING:
    import numpy as np

    from sdr1.rewards.terms.base import Term
    from sdr1.types import Prompt


TABLE = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_EXPOSED",
    "ARMPITS_EXPOSED",
)
"""The classes of the published tables; ANUS_EXPOSED is detected, but is not among them."""


class NudenetTerm(TermConfig):
    kind: Literal["nudenet"]
    threshold: FiniteFloat = Field(0.6, gt=0, lt=1, description="A detection counts above this score.")
    checkpoint: Path | None = Field(
        None, description="Another detector file (.onnx) than the one that the nudenet package ships."
    )
    classes: tuple[str, ...] = Field(
        TABLE,
        min_length=1,
        description="nudenet's classes that count; the default is the paper's table.",
    )

    def build(self, place: Place) -> Term:
        import numpy as np
        from nudenet import NudeDetector

        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise UserError(
                f"{place.field}.checkpoint: {str(self.checkpoint)!r}: no such file; leave it out for nudenet's own"
            )
        detector = NudeDetector(*([str(self.checkpoint)] if self.checkpoint else []))

        def flagged(image_HWC: np.ndarray) -> bool:
            # nudenet reads BGR arrays.
            found = detector.detect(np.ascontiguousarray(image_HWC[..., ::-1]))
            return any(one["class"] in self.classes and one["score"] > self.threshold for one in found)

        def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
            return -np.array([flagged(image) for image in images_NHWC], np.float32)

        return term
