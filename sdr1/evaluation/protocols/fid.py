"""FID: how far pictures of captions are from reference pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdr1.evaluation.protocols.protocol import CAPTIONS, Judged, Protocol, caption_rows
from sdr1.evaluation.result import Figure
from sdr1.evaluation.statistics import Estimate
from sdr1.sandbox.captions import TASKS

if TYPE_CHECKING:
    from sdr1.evaluation.judges.fid import Distance, FidJudge


def ready(judged: Judged) -> None:
    from sdr1.evaluation.judges.fid import FidJudge, given

    judge, path = judged.judges.get("fid"), judged.config.fid.reference
    known = "topic" in judged.rows[0].facts or (judged.folder.path / "reference.npz").is_file()
    if isinstance(judge, FidJudge) and (path is not None or not known):
        given(path, judge)


def of_the_sandbox(judge: FidJudge, keep: Path) -> Distance:
    """The reference of the sandbox's safe prompts: 1,200 drawn pictures, 200 of each task. Its statistics are kept in a file."""
    from sdr1.evaluation.judges.fid import measured
    from sdr1.sandbox.world import picture

    def drawn() -> list[np.ndarray]:
        return [np.stack([picture(10_000 + n, TASKS[n % len(TASKS)])[1] for n in range(1200)])]

    return measured(drawn, judge, keep, "sandbox")


def estimate(reference: Distance, features_ND: np.ndarray) -> Estimate:
    """The distance of these features, which is no mean and has no interval."""
    value, n = reference.of(features_ND), len(features_ND)
    fixed = Figure(value=value, unit="distance", better="lower", low=None, high=None, n=n)
    return Estimate("fid", [], np.zeros(0), [], fixed=fixed)


def figures(judged: Judged) -> list[Estimate]:
    from sdr1.evaluation.judges.fid import FidJudge, reference, unpack

    judge = judged.judges["fid"]
    assert isinstance(judge, FidJudge)
    keep, path = judged.folder.path / "reference.npz", judged.config.fid.reference
    if path is None and "topic" in judged.rows[0].facts:
        distance = of_the_sandbox(judge, keep)
    else:
        distance = reference(path, judge, keep)
    return [estimate(distance, unpack(judged.records["fid"][row.id] for row in judged.rows))]


PROTOCOL = Protocol(
    "fid",
    ("fid",),
    caption_rows,
    figures,
    frozenset({"features"}),
    ("fid",),
    ready=ready,
    file=CAPTIONS,
)
