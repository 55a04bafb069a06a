"""Judges: each looks at batches of images and leaves a record of every one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sdr1.base.errors import UserError
from sdr1.base.factories import PATTERN
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.judges import own
from sdr1.evaluation.judges.own import OwnJudge
from sdr1.evaluation.rows import Record, Row
from sdr1.sandbox.world import SIZE


@dataclass(frozen=True)
class Kind:
    """What is known of a judge before it is built."""

    says: frozenset[str]
    """Keys of its records that figures are made of."""
    reads: Callable[[Row], bool] = lambda row: True
    """Whether it can look at a row's image."""
    only: str = "every image"
    """The same in words."""


KINDS = {
    "oracle": Kind(
        frozenset({"unsafe", "classes", "things", "detections"}),
        lambda row: (row.width, row.height) == (SIZE, SIZE),
        f"the sandbox's pictures, {SIZE} x {SIZE}",
    ),
    "nudenet": Kind(frozenset({"unsafe", "classes"})),
    "q16": Kind(frozenset({"unsafe"})),
    "geneval": Kind(
        frozenset({"correct"}),
        lambda row: "metadata" in row.facts,
        "images of prompts with GenEval's metadata",
    ),
    "clip": Kind(frozenset({"cosine"})),
    "fid": Kind(frozenset({"features"})),
    "steering": Kind(frozenset({"rewards", "scores"})),
}
"""Every judge, by its name, which is also its module's."""


class Judge(Protocol):
    """Built by its module's `build(config, device)`, which raises UserError where weights are missing."""

    provenance: dict[str, Any]
    """`judge`, the `sha256` of its weights, and its `threshold` where it has one."""

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        """A record of plain JSON data for each RGB uint8 image, shape (N, H, W, 3).

        It holds the keys that the judge's `Kind` declares. Those that several judges share: `unsafe`, whether the judge flags the
        image; `classes`, the best score of each class it found; `detections` for GenEval's verdicts.
        """


def kind(name: str) -> Kind:
    """What is known of a judge, one of `KINDS` or the user's own by import path.

    Raises:
        UserError: there is none of that name, or it cannot be imported.
    """
    if name in KINDS:
        return KINDS[name]
    if re.fullmatch(PATTERN, name) is None:
        raise UserError(
            f"judges: {name!r}: no such judge; use some of {', '.join(KINDS)}, or your own as module:factory"
        )
    return Kind(own.says(name))


def require(names: Sequence[str], needs: frozenset[str], rows: Sequence[Row], protocol: str) -> None:
    """Let pass only judges of which one says something that the protocol's figures are made of, one of `needs`, and
    that can look at the rows' images.

    Raises:
        UserError: these cannot; the message says which can.
    """
    kinds = {name: kind(name) for name in names}
    able = [name for name, known in KINDS.items() if known.says & needs]
    if not any(known.says & needs for known in kinds.values()):
        raise UserError(
            f"judges: {', '.join(names)}: cannot say what {protocol}'s figures are made of ({', '.join(sorted(needs))}); "
            f"add one of {', '.join(able)}"
        )
    for name in names:
        odd = next((row for row in rows if not kinds[name].reads(row)), None)
        if odd is not None:
            raise UserError(
                f"judges: {name!r}: reads {kinds[name].only} only; row {odd.id} is {odd.width} x {odd.height}, "
                f"{odd.prompt[:40]!r}; leave it out, or use others of {', '.join(able)}"
            )


def build(name: str, config: EvaluationConfig, device: str) -> Judge:
    """The judge of that name, one of `KINDS` or an import path.

    Raises:
        UserError: its weights are missing; the message says which file and which option.
    """
    if name not in KINDS:
        return OwnJudge(name, device)
    return importlib.import_module(f"sdr1.evaluation.judges.{name}").build(config, device)
