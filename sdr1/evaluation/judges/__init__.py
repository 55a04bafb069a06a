"""Judges: each looks at batches of images and leaves a record of every one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sdr1.errors import UserError
from sdr1.evaluation.config import EvaluationConfig
from sdr1.evaluation.rows import Row

NAMES = ("oracle", "nudenet", "q16", "geneval", "clip", "fid", "steering")


class Judge(Protocol):
    """Built by its module's `build(config, device)`, which raises UserError where weights are missing."""

    provenance: dict[str, Any]
    """`judge`, the `sha256` of its weights, and its `threshold` where it has one."""

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """A record of plain JSON data for each RGB uint8 image, shape (N, H, W, 3).

        Shared keys: `unsafe`, whether the judge flags the image; `classes`, the best score of each class it found;
        `detections` for GenEval's verdicts.
        """


def build(name: str, config: EvaluationConfig, device: str) -> Judge:
    """The judge of that name.

    Raises:
        UserError: there is none, or its weights are missing; the message says which file and which option.
    """
    if name not in NAMES:
        raise UserError(f"judges: {name!r}: no such judge; use some of {', '.join(NAMES)}")
    return importlib.import_module(f"sdr1.evaluation.judges.{name}").build(config, device)
