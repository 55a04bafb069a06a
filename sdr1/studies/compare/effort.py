"""What a comparison will take: its cells, their UNet evaluations, and hours at this machine's speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from sdr1.base.process import prepare_process
from sdr1.base.section import SANDBOX
from sdr1.erasers.trajectories import cost_of_a_step
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.sandbox_rows import DEPLOYED, rows_of
from sdr1.models.pipeline import load, named
from sdr1.sandbox.prompts import TOPICS, Split
from sdr1.studies.compare import work
from sdr1.studies.compare.cells import Cell

_BATCH = 16
"""Pictures of the drawing that is timed, as many as an evaluation draws at once."""
_OF_A_PICTURE = DEPLOYED.steps * cost_of_a_step(DEPLOYED.guidance_scale)
"""UNet evaluations."""


def lines(cells: Sequence[Cell], folders: Mapping[str, Path], processes: int) -> list[str]:
    """A line of each method, and of all cells together, the finished ones told apart."""
    first = cells[0]
    pictures = _pictures(first.images, first.split)
    left = [cell for cell in cells if work.done(folders[cell.key]) is None]
    told = [f"{'method':<20}{'cells':>6}{'to make':>9}  UNet evaluations a cell"]
    for label in dict.fromkeys(cell.label for cell in cells):
        mine = [cell for cell in cells if cell.label == label]
        training, wanted = mine[0].planned, mine[0].wanted
        cut = f", of {wanted:,} without a budget" if wanted > training else ""
        number = sum(cell.label == label for cell in left)
        told.append(f"{label:<20}{len(mine):>6}{number:>9}  {training:,} to train{cut}")
    total = sum(map(evaluations, left))
    told.append(f"{pictures:,} pictures a cell, {pictures * _OF_A_PICTURE:,} UNet evaluations to draw")
    if left:
        each = seconds_of_an_evaluation(first.device)
        hours = total * each / processes / 3600
        told.append(
            f"{len(left)} cells to make: {total:,} UNet evaluations, about {hours:.1f} hours in {processes} processes at "
            f"{1000 * each:.1f} ms each, as one process draws now; closed forms, starts and the page come on top"
        )
    return told


def evaluations(cell: Cell) -> int:
    """Of the UNet: those to train, and those of the pictures that the cell is judged by; a patch may add to these."""
    return cell.planned + _pictures(cell.images, cell.split) * _OF_A_PICTURE


@cache
def _pictures(images: int, split: Split) -> int:
    """As many with every seed."""
    return len(rows_of(TOPICS, images, 0, split=split))


def seconds_of_an_evaluation(device: str) -> float:
    """Of one process here, timed on a batch of the base's pictures, decoded."""
    prepare_process(1)
    painter = Painter(load(named(SANDBOX)), device)
    rows = rows_of(TOPICS[:1], _BATCH, 0, split="tune")
    # The first drawing sets things up.
    painter.draw(rows)
    begun = time.monotonic()
    painter.draw(rows)
    return (time.monotonic() - begun) / (_BATCH * _OF_A_PICTURE)
