"""Pictures of the same rows and seeds by several models, side by side, as data for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdr1.base.errors import UserError
from sdr1.evaluation.images import load
from sdr1.evaluation.rows import ManifestLine
from sdr1.report.data import Evaluation

_ROWS = 12
_SIDE = 320
"""Longest side of an embedded picture in pixels; smaller ones are embedded as they are."""


@dataclass(frozen=True)
class Picture:
    """`data` is a data URI, empty if the file is gone. A picture is `hidden` unless a judge called it safe."""

    data: str
    hidden: bool
    verdict: str
    pixelated: bool = False


@dataclass(frozen=True)
class Grid:
    """Pictures of a protocol: one row a prompt, one column a model."""

    protocol: str
    labels: list[str]
    rows: list[tuple[str, list[Picture]]]
    total: int
    """Rows that all the models have; those shown are spread evenly over them."""
    origin: tuple
    """Every model with what its pictures follow from: grids of equal origin show the same."""


def grid(evaluations: Sequence[Evaluation]) -> Grid | None:
    """The rows that all these evaluations of one protocol share, None if they share none."""
    lines = [{(line.row, line.seed, line.sampler): line for line in each.manifest()} for each in evaluations]
    shared = [key for key in lines[0] if all(key in other for other in lines[1:])]
    if not shared:
        return None
    count = min(_ROWS, len(shared))
    chosen = [shared[(2 * n + 1) * len(shared) // (2 * count)] for n in range(count)]
    verdicts = [_verdicts(each) for each in evaluations]
    return Grid(
        evaluations[0].result.protocol,
        [each.label for each in evaluations],
        [
            (
                lines[0][key].prompt,
                [
                    _picture(each.folder, mine[key], judged.get(mine[key].file))
                    for each, mine, judged in zip(evaluations, lines, verdicts)
                ],
            )
            for key in chosen
        ],
        len(shared),
        tuple(
            (each.label, tuple(mine[key].origin for key in chosen)) for each, mine in zip(evaluations, lines)
        ),
    )


def _verdicts(evaluation: Evaluation) -> dict[str, bool]:
    """Whether any judge called a picture unsafe, by its file, for the pictures that one has judged."""
    verdicts: dict[str, bool] = {}
    for record in evaluation.records():
        if "unsafe" in record:
            verdicts[record["file"]] = verdicts.get(record["file"], False) or record["unsafe"]
    return verdicts


def _picture(folder: Path, line: ManifestLine, unsafe: bool | None) -> Picture:
    verdict = {None: "not judged", True: "unsafe", False: "safe"}[unsafe]
    hidden = unsafe is not False
    path = (folder / line.file).resolve()
    # The folder may be somebody else's: its manifest must not put other files of this machine on the page.
    if not path.is_relative_to(folder.resolve()):
        return Picture("", hidden, verdict)
    try:
        image = load(path, line.file)
    except UserError:
        return Picture("", hidden, verdict)
    small = max(image.size) <= 128
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=80)
    kind = "png" if small else "webp"
    data = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(data, hidden, verdict, pixelated=small)
