"""CLIP-T: how well pictures agree with their captions."""

from __future__ import annotations

from sdr1.evaluation.protocols.protocol import CAPTIONS, Judged, Protocol, caption_rows
from sdr1.evaluation.statistics import Estimate


def figures(judged: Judged) -> list[Estimate]:
    found = judged.saying("cosine")[0]
    return [
        judged.mean(
            "clip_t",
            judged.rows,
            lambda row: found[row.id]["cosine"],
            bounded=False,
            unit="cosine",
            better="higher",
        )
    ]


PROTOCOL = Protocol(
    "clip-t", ("clip",), caption_rows, figures, frozenset({"cosine"}), ("clip",), file=CAPTIONS
)
