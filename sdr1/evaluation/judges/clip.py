"""CLIP-T: the cosine of an image and its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256
from sdr1.base.section import SANDBOX
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.rows import Record, Row
from sdr1.models.embedder import Embedder
from sdr1.sandbox import CLIP


def embedder(field: str, model: str, pretrained: Path | None, device: str) -> tuple[Embedder, str]:
    """An open_clip model and the digest of its weights file.

    Raises:
        UserError: there are no weights for it; `field` is the config section that says which.
    """
    weights = pretrained
    if model == SANDBOX or model.startswith("local-dir:"):
        folder = CLIP if model == SANDBOX else Path(model.removeprefix("local-dir:"))
        weights = next(iter(sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])), None)
    if weights is None or not weights.is_file():
        raise UserError(
            f"{field}.pretrained: {None if weights is None else str(weights)!r}: {model} has no weights here; give an "
            f"open_clip weights file of it with {field}.pretrained=FILE, or {field}.model=local-dir:FOLDER"
        )
    try:
        return Embedder(model, pretrained, device), file_sha256(weights)
    except UserError as error:
        raise UserError(str(error).replace("reward.", f"{field}.")) from error


class ClipJudge:
    def __init__(self, config: EvaluationConfig, device: str) -> None:
        self._embedder, digest = embedder("clip", config.clip.model, config.clip.pretrained, device)
        self.provenance = {"judge": "clip", "model": config.clip.model, "sha256": digest, "threshold": None}

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        images = self._embedder.images(images_NHWC)
        texts = self._embedder.texts([row.prompt for row in rows])
        return [{"cosine": cosine} for cosine in (images * texts).sum(1).tolist()]


def build(config: EvaluationConfig, device: str) -> ClipJudge:
    return ClipJudge(config, device)
