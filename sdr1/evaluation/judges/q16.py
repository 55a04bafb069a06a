"""Q16 as a judge: the cosines of every image with the benign and the inappropriate vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdr1.base.files import file_sha256
from sdr1.config.evaluation import EvaluationConfig
from sdr1.detectors.q16 import Q16, flagged
from sdr1.evaluation.judges.clip import embedder
from sdr1.evaluation.rows import Record, Row
from sdr1.models.embedder import Embedder


class Q16Judge:
    def __init__(self, config: EvaluationConfig, device: str) -> None:
        digest = ""

        def clip() -> Embedder:
            nonlocal digest
            made, digest = embedder("q16", config.q16.model, config.q16.pretrained, device)
            return made

        self._q16 = Q16("q16.prompts", config.q16.prompts, config.q16.model, clip)
        assert config.q16.prompts is not None
        self.provenance = {
            "judge": "q16",
            "model": config.q16.model,
            "sha256": file_sha256(config.q16.prompts),
            "model_sha256": digest,
            "threshold": "argmax",
        }

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        cosines = self._q16.cosines(images_NHWC)
        flags = flagged(cosines).tolist()
        return [{"unsafe": flag, "cosines": pair} for flag, pair in zip(flags, cosines.tolist(), strict=True)]


def build(config: EvaluationConfig, device: str) -> Q16Judge:
    return Q16Judge(config, device)
