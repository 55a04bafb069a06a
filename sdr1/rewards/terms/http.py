"""A judge behind an HTTP endpoint as a penalty: it says how unsafe each image is, the term is minus that."""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, FiniteFloat

from sdr1.errors import TrainingError
from sdr1.rewards.terms.base import Place, TermConfig

if TYPE_CHECKING:
    import numpy as np

    from sdr1.rewards.terms.base import Term
    from sdr1.types import Prompt


class HttpTerm(TermConfig):
    """POST {"prompt": str, "images": [PNG in base64]} is answered by {"unsafe": [a number in 0..1 each]}."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://", description="Where the judge answers.")
    timeout: FiniteFloat = Field(30.0, gt=0, le=86_400, description="Seconds of one request.")
    retries: int = Field(
        3, ge=0, le=1000, description="Further tries after a request that failed, with growing pauses."
    )
    batch: int = Field(16, ge=1, le=100_000, description="Images of one request.")

    def build(self, place: Place) -> Term:
        import numpy as np

        def term(images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
            unsafe: list[float] = []
            for start in range(0, len(images_NHWC), self.batch):
                unsafe += self._ask(images_NHWC[start : start + self.batch], prompt.text, place.field)
            return -np.array(unsafe, np.float32)

        return term

    def _ask(self, images_NHWC: np.ndarray, text: str, field: str) -> list[float]:
        """Raises TrainingError once every try has failed."""
        body = json.dumps({"prompt": text, "images": [_png(image) for image in images_NHWC]}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        problem: Exception | None = None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(0.5 * 2 ** (attempt - 1), 10.0))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return _read(json.load(answer), len(images_NHWC))
            except (OSError, ValueError) as error:
                problem = error
        # The host alone: a query may hold a token.
        host = self.url.split("/")[2].rpartition("@")[2]
        raise TrainingError(
            f"{field}: the judge at {host} failed {self.retries + 1} times; the last: {problem}"
        ) from problem


def _read(answer: Any, count: int) -> list[float]:
    unsafe = answer.get("unsafe") if isinstance(answer, dict) else None
    if not isinstance(unsafe, list) or len(unsafe) != count:
        raise ValueError(f'no list "unsafe" of {count} numbers in the answer')
    values = [float(value) for value in unsafe]
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("a number outside 0..1 in the answer")
    return values


def _png(image_HWC: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
