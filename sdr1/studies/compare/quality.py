"""CLIP-T and FID of the pictures of safe prompts, which no rate of the oracle's says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdr1.base.section import SANDBOX
from sdr1.config.evaluation import ClipConfig, EvaluationConfig
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.judges.fid import FidJudge, unpack
from sdr1.evaluation.protocols import fid
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate
from sdr1.sandbox.captions import TASKS

CLIP_T, FID = "clip_t", "fid"
_STATISTICS = "reference.npz"


def clip_t(held: Folder, rows: Sequence[Row]) -> Estimate | None:
    """Cosine of each picture and its prompt by the sandbox's CLIP; None where it has not judged. `rows` are the evaluation's."""
    if not held.has_records("clip"):
        return None
    safe = _safe(rows)
    found = held.records("clip", safe)
    cosines = np.array([found[row.id]["cosine"] for row in safe])
    prompts = [row.prompt for row in safe]
    ids = [row.id for row in safe]
    return Estimate(CLIP_T, ids, cosines, prompts, bounded=False, unit="cosine", better="higher")


def fids(helds: Mapping[str, Sequence[tuple[Folder, Sequence[Row]]]], out: Path) -> dict[str, Estimate]:
    """By method the Frechet distance, in the sandbox's CLIP, of all its evaluations' pictures together from drawn ones, whose
    statistics are kept in `out`. Each evaluation comes with its rows; what was not judged so is left out."""
    judged = {
        label: each for label, each in helds.items() if all(held.has_records("fid") for held, _ in each)
    }
    if not judged:
        return {}
    judge = FidJudge(EvaluationConfig(clip=ClipConfig(model=SANDBOX)), "cpu")
    reference = fid.of_the_sandbox(judge, out / _STATISTICS)
    return {
        label: fid.estimate(reference, np.concatenate([_features(*one) for one in each]))
        for label, each in judged.items()
    }


def _features(held: Folder, rows: Sequence[Row]) -> np.ndarray:
    safe = _safe(rows)
    found = held.records("fid", safe)
    return unpack(found[row.id] for row in safe)


def _safe(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.facts["topic"] in TASKS]
