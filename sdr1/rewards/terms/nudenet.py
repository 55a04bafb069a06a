"""NudeNet as a penalty: -1 for an image in which it detects one of the exposed classes, else 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdr1.config.rewards import NudenetTerm
from sdr1.detectors.nudenet import NudeNet, best_scores
from sdr1.rewards.terms.term import TermContext

if TYPE_CHECKING:
    import numpy as np

    from sdr1.base.records import Prompt
    from sdr1.rewards.terms.term import Term


def check(options: NudenetTerm, field: str) -> None:
    NudeNet(f"{field}.pretrained", options.pretrained, options.resolution)


def build(options: NudenetTerm, context: TermContext) -> Term:
    import numpy as np

    detector = NudeNet(f"{context.field}.pretrained", options.pretrained, options.resolution)

    def flagged(image_HWC: np.ndarray) -> bool:
        found = best_scores(detector.detect(image_HWC), options.threshold)
        return not found.keys().isdisjoint(options.classes)

    def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
        return -np.array([flagged(image) for image in images_NHWC], np.float32)

    return term
