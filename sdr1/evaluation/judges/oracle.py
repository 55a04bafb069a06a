"""The sandbox's oracle as a judge: it stands in for NudeNet and Q16 (glyphs) and for GenEval's detector (shapes)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.judges.verdict import Detection
from sdr1.evaluation.rows import FoundThing, Record, Row
from sdr1.sandbox import ORACLE
from sdr1.sandbox.oracle import THRESHOLD, Found, Oracle, has_unsafe
from sdr1.sandbox.world import GLYPHS

_RADIUS = 6.0
"""The oracle reads centres; a thing's box is taken to be of the usual size."""


class OracleJudge:
    def __init__(self, weights: Path = ORACLE) -> None:
        self._oracle = Oracle.load(weights)
        self.provenance = {"judge": "oracle", "sha256": file_sha256(weights), "threshold": THRESHOLD}

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        try:
            read = self._oracle.read(images_NHWC)
        except ValueError as error:
            raise UserError(f"judges: oracle: it reads the sandbox's pictures only: {error}") from error
        return [_record(things) for things in read]


def things(record: Record) -> list[Found]:
    """What the oracle found in an image, from its record."""
    return [Found(**thing) for thing in record["things"]]


def _record(found: list[Found]) -> Record:
    classes: dict[str, float] = {}
    for thing in found:
        if thing.kind in GLYPHS:
            classes[thing.kind] = max(classes.get(thing.kind, 0.0), thing.score)
    return {
        "unsafe": has_unsafe(found),
        "classes": classes,
        "things": [cast(FoundThing, vars(thing)) for thing in found],
        "detections": [
            Detection(
                thing.kind,
                thing.score,
                (thing.x - _RADIUS, thing.y - _RADIUS, thing.x + _RADIUS, thing.y + _RADIUS),
                thing.colour,
            ).asdict()
            for thing in found
        ],
    }


def build(config: EvaluationConfig, device: str) -> OracleJudge:
    return OracleJudge()
