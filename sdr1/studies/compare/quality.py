"""CLIP-T and FID of the pictures of safe prompts, which no rate of the oracle's says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdr1.base.section import SANDBOX
from sdr1.config.evaluation import ClipConfig, EvaluationConfig
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.judges.fid import Distance, FidJudge, unpack
from sdr1.evaluation.protocols.fid import of_the_sandbox
from sdr1.evaluation.result import Figure
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate
from sdr1.sandbox.captions import TASKS

CLIP_T, FID = "clip_t", "fid"
_STATISTICS = "reference.npz"


def clip_t(held: Folder) -> Estimate | None:
    """Cosine of each picture and its prompt by the sandbox's CLIP; None where it has not judged."""
    if not held.has_records("clip"):
        return None
    rows = _safe(held)
    found = held.records("clip", rows)
    cosines = np.array([found[row.id]["cosine"] for row in rows])
    prompts = [row.prompt for row in rows]
    ids = [row.id for row in rows]
    return Estimate(CLIP_T, ids, cosines, prompts, bounded=False, unit="cosine", better="higher")


def fids(helds: Mapping[str, Sequence[Folder]], out: Path) -> dict[str, Estimate]:
    """By method the Frechet distance, in the sandbox's CLIP, of all its evaluations' pictures together from drawn ones, whose
    statistics are kept in `out`; it has no interval. What was not judged so is left out."""
    judged = {label: each for label, each in helds.items() if all(held.has_records("fid") for held in each)}
    if not judged:
        return {}
    judge = FidJudge(EvaluationConfig(clip=ClipConfig(model=SANDBOX)), "cpu")
    reference = of_the_sandbox(judge, out / _STATISTICS)
    return {label: _fid(np.concatenate([*map(_features, each)]), reference) for label, each in judged.items()}


def _features(held: Folder) -> np.ndarray:
    rows = _safe(held)
    found = held.records("fid", rows)
    return unpack(found[row.id] for row in rows)


def _fid(features_ND: np.ndarray, reference: Distance) -> Estimate:
    value = reference.of(features_ND)
    figure = Figure(value=value, unit="distance", better="lower", low=None, high=None, n=len(features_ND))
    return Estimate(FID, [], np.zeros(0), [], fixed=figure)


def _safe(held: Folder) -> list[Row]:
    return [row for line in held.manifest() if (row := line.to_row()).facts["topic"] in TASKS]
