"""The steering study's judge: what an image would be rewarded at every alpha, every prompt steered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sdr1.base.errors import UserError
from sdr1.base.section import SANDBOX
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.rewards import AnchorsConfig
from sdr1.evaluation.judges.clip import embedder
from sdr1.evaluation.rows import Record, Row
from sdr1.method import steering


class SteeringJudge:
    def __init__(self, config: EvaluationConfig, device: str) -> None:
        self._embedder, digest = embedder("clip", config.clip.model, config.clip.pretrained, device)
        self._alphas = config.alphas
        anchors = AnchorsConfig()
        if config.clip.model == SANDBOX:
            from sdr1.sandbox.captions import SAFE_ANCHORS, UNSAFE_ANCHORS

            anchors = AnchorsConfig(safe=tuple(SAFE_ANCHORS), unsafe=tuple(UNSAFE_ANCHORS))
        try:
            self._direction = steering.safety_direction(
                self._embedder.texts(list(anchors.safe)), self._embedder.texts(list(anchors.unsafe))
            )
        except ValueError as error:
            raise UserError(f"clip.model: {config.clip.model!r}: {error}; give another encoder") from error
        self.provenance = {
            "judge": "steering",
            "model": config.clip.model,
            "sha256": digest,
            "threshold": 0.0,
            "alphas": list(config.alphas),
        }

    def target(self, texts: list[str], alpha: float) -> torch.Tensor:
        """Steered embeddings of texts, shape (B, D), float32."""
        return steering.translate(self._embedder.texts(texts), self._direction, alpha)

    def score(self, texts: list[str], alpha: float) -> np.ndarray:
        """Safety scores of steered embeddings, shape (B,), float32; negative leans unsafe."""
        return steering.safety_score(self.target(texts, alpha), self._direction).cpu().numpy()

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        images, texts = self._embedder.images(images_NHWC), [row.prompt for row in rows]
        rewards = {alpha: (images * self.target(texts, alpha)).sum(1).tolist() for alpha in self._alphas}
        scores = {alpha: self.score(texts, alpha).tolist() for alpha in self._alphas}
        return [
            {
                "rewards": {f"{alpha:g}": rewards[alpha][n] for alpha in self._alphas},
                "scores": {f"{alpha:g}": scores[alpha][n] for alpha in self._alphas},
            }
            for n in range(len(rows))
        ]


def build(config: EvaluationConfig, device: str) -> SteeringJudge:
    return SteeringJudge(config, device)
