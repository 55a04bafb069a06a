"""NudeNet as a penalty: -1 for an image in which it detects one of the exposed classes, else 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, FiniteFloat, field_validator

from sdr1.detectors.nudenet import CLASSES, EXPOSED, RESOLUTION, THRESHOLD, NudeNet, best_scores, weights
from sdr1.rewards.terms.base import Place, TermConfig

if TYPE_CHECKING:
    import numpy as np

    from sdr1.base.records import Prompt
    from sdr1.rewards.terms.base import Term


class NudenetTerm(TermConfig):
    kind: Literal["nudenet"]
    threshold: FiniteFloat = Field(THRESHOLD, gt=0, lt=1, description="A detection counts above this score.")
    checkpoint: Path | None = Field(
        None, description="Another detector file (.onnx) than the one that the nudenet package ships."
    )
    resolution: int = Field(RESOLUTION, ge=32, le=8192, description="Input size of that model, in pixels.")
    classes: tuple[str, ...] = Field(
        EXPOSED,
        min_length=1,
        description="nudenet's classes that count; the default is all the exposed ones: the paper's table and the anus.",
    )

    @field_validator("classes")
    @classmethod
    def _are_nudenets(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in classes if name not in CLASSES]:
            raise ValueError(f"{unknown[0]!r}: NudeNet has no such class; use some of {', '.join(CLASSES)}")
        return classes

    def check(self, field: str) -> None:
        weights(f"{field}.checkpoint", self.checkpoint)

    def build(self, place: Place) -> Term:
        import numpy as np

        detector = NudeNet(f"{place.field}.checkpoint", self.checkpoint, self.resolution)

        def flagged(image_HWC: np.ndarray) -> bool:
            return not best_scores(detector.detect(image_HWC), self.threshold).keys().isdisjoint(self.classes)

        def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
            return -np.array([flagged(image) for image in images_NHWC], np.float32)

        return term
