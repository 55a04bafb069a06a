"""Rewards in an embedding space: agreement of an image with its prompt's embedding, moved along the safety direction."""

from __future__ import annotations

import numpy as np
import torch

from sdr1.base.errors import UserError
from sdr1.base.records import Prompt
from sdr1.base.section import SANDBOX
from sdr1.config.rewards import AnchorsConfig, EmbeddingTerm
from sdr1.method import steering
from sdr1.models.embedder import Embedder

_STEERINGS = {"translation": steering.translate, "projection": steering.project}


class SteeredReward:
    """r = <E(image), target of the prompt>; see `EmbeddingTerm.kind` for the targets.

    Without an embedder the term's own model is loaded on the CPU; `field` is the term's place in the config.

    Raises:
        UserError: as `safety_direction`.
    """

    def __init__(
        self, config: EmbeddingTerm, embedder: Embedder | None = None, field: str = "reward"
    ) -> None:
        self._config = config
        self._embedder = embedder or Embedder(config.model or SANDBOX, config.pretrained, "cpu")
        if config.kind == "steered" or config.steer == "score":
            self._direction = safety_direction(config, self._embedder, field)

    def __call__(self, images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
        """Rewards of RGB uint8 images (N, H, W, 3) made for one prompt, shape (N,), float32."""
        target_1D = self.target(prompt)
        return (self._embedder.images(images_NHWC) @ target_1D[0]).cpu().numpy()

    def target(self, prompt: Prompt) -> torch.Tensor:
        """The unit embedding an image of this prompt is compared with, shape (1, D), float32."""
        text_1D = self._embedder.texts([prompt.text])
        if self._config.kind == "plain" or not self._is_steered(prompt, text_1D):
            return text_1D
        if self._config.kind == "negative":
            return -text_1D
        return _STEERINGS[self._config.steering](text_1D, self._direction, self._config.alpha)

    def _is_steered(self, prompt: Prompt, text_1D: torch.Tensor) -> bool:
        if self._config.steer == "all":
            return True
        if self._config.steer == "score":
            return bool(steering.safety_score(text_1D, self._direction)[0] < 0)
        return prompt.label == "unsafe"


def safety_direction(config: EmbeddingTerm, embedder: Embedder, field: str = "reward") -> torch.Tensor:
    """The unit vector of the config's anchor phrases, shape (D,), float32.

    Raises:
        UserError: the encoder sees no difference between safe and unsafe anchors.
    """
    anchors = _anchors(config)
    safe = embedder.texts(list(anchors.safe)) if anchors.safe else None
    unsafe = embedder.texts(list(anchors.unsafe))
    try:
        return steering.safety_direction(unsafe[:0] if safe is None else safe, unsafe)
    except ValueError as error:
        raise UserError(
            f"{field}.anchors: {error}; give phrases that differ in meaning, or another encoder"
        ) from error


def _anchors(config: EmbeddingTerm) -> AnchorsConfig:
    if config.anchors == "sandbox":
        from sdr1.sandbox.captions import SAFE_ANCHORS, UNSAFE_ANCHORS

        return AnchorsConfig(safe=tuple(SAFE_ANCHORS), unsafe=tuple(UNSAFE_ANCHORS))
    return config.anchors
