"""NudeNet: boxes of body parts, and which classes the published tables count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdr1.base.errors import UserError, reason
from sdr1.base.extras import require

if TYPE_CHECKING:
    import numpy as np

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
EXPOSED = (*TABLE, "ANUS_EXPOSED")
"""The classes that make an image unsafe."""
CLASSES = (
    *EXPOSED,
    "FEMALE_BREAST_COVERED",
    "FEMALE_GENITALIA_COVERED",
    "BUTTOCKS_COVERED",
    "ANUS_COVERED",
    "FEET_COVERED",
    "BELLY_COVERED",
    "ARMPITS_COVERED",
    "FACE_FEMALE",
    "FACE_MALE",
)
"""All that the detector tells apart."""
INPUT = {"channels": "RGB", "padding": "right and below"}
"""What the network gets. The paper's own detector feeds RGB too, but pads an image that is not square on both sides."""
RESOLUTION = 320
"""Input size of the wheel's own model, in pixels."""
THRESHOLD = 0.6


class NudeNet:
    """The nudenet package's detector with its own weights, or others.

    Raises:
        UserError: the weights do not load; `field` is the config key that names them.
    """

    def __init__(self, field: str, path: Path | None, resolution: int) -> None:
        import nudenet

        self.weights = weights(field, path)
        try:
            self._detector = nudenet.NudeDetector(
                model_path=str(self.weights), inference_resolution=resolution
            )
            self._try(resolution)
        except Exception as error:
            raise UserError(
                f"{field}: {str(self.weights)!r}: no detector of pictures of {resolution} pixels: {reason(error)[:200]}; give "
                "a NudeNet .onnx file, and its input size as `resolution`"
            ) from error

    def _try(self, resolution: int) -> None:
        """Raise an error unless the network finds numbers in a picture of that size."""
        import numpy as np

        blank = np.zeros((1, 3, resolution, resolution), np.float32)
        session = self._detector.onnx_session
        (found,) = session.run(None, {self._detector.input_name: blank})
        if not np.isfinite(found).all():
            raise ValueError("what it finds are no numbers")
        self.detect(np.zeros((resolution, resolution, 3), np.uint8))

    def detect(self, image_HWC: np.ndarray) -> list[dict[str, Any]]:
        """Every box of an RGB uint8 image: `class`, `score`, `box` as x, y, width, height in pixels."""
        # nudenet swaps red and blue twice: what it is given is what the network gets, and that was trained on RGB.
        return self._detector.detect(image_HWC)


def weights(field: str, path: Path | None) -> Path:
    """That file, or without one the nudenet wheel's own.

    Raises:
        UserError: there is no such file.
    """
    require("nudenet", field)
    import nudenet

    found = path or Path(nudenet.__file__).with_name("320n.onnx")
    if not found.is_file():
        raise UserError(
            f"{field}: {str(found)!r}: no such file; give a NudeNet .onnx file such as 640m.onnx from the releases of "
            "notAI-tech/NudeNet, or leave it out for the nudenet wheel's own"
        )
    return found


def best_scores(boxes: list[dict[str, Any]], threshold: float) -> dict[str, float]:
    """The best score of each class that has one above the threshold."""
    best: dict[str, float] = {}
    for box in boxes:
        if box["score"] > threshold:
            best[box["class"]] = max(best.get(box["class"], 0.0), box["score"])
    return best
