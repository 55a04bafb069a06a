"""`sdr1 compare`: every method trained and judged for itself, then one table and one page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdr1.base.errors import TrainingError
from sdr1.base.files import hold, open_lock, refuse_foreign, remove_partial, write_text
from sdr1.base.process import require_device
from sdr1.studies.compare import effort, page, table, tries, work
from sdr1.studies.compare.cells import DEFAULT, Cell, Comparison, cells, read
from sdr1.studies.compare.tries import Log
from sdr1.studies.compare.work import Make
from sdr1.training.run import check

MARKER = "compare.json"
"""The file by which sdr1 knows a comparison's folder; it holds what was asked for last."""
Work = Callable[[Sequence[tuple[Cell, Path]], Make, int], Iterator[tuple[Cell, str]]]


def run(
    file: Path | None,
    out: Path,
    work_on: Work = work.in_processes,
    make: Make = work.make,
    *,
    tune: bool = False,
    device: str = "cpu",
    processes: int = 2,
) -> None:
    """Make the cells that are missing, then write `table.json`, `summary.json`, the page and its pictures. `tune` makes the
    methods' tries instead, and their log. Every cell is trained and judged on `device`, `processes` of them at a time.

    A cell that is there is taken as it is if everything that matters to it is the same: settings, seed, budget, the
    base's weights, the code of its method and of the judging. `table.json` has what is done so far.

    Raises:
        UserError: the file, or a value in it, is wrong, or `out` holds something else; nothing was written.
        TrainingError: cells failed; the others were made, and are in the table.
    """
    require_device("--device", device)
    given = read(file)
    asked, log = _asked(given, file, tune)
    refuse_foreign(out, MARKER, "comparison", "--out")
    wanted = cells(asked, device)
    for config in {cell.label: cell.train for cell in wanted if cell.train is not None}.values():
        check(config, local=True)
    if not (out / MARKER).exists():
        write_text(out / MARKER, "{}\n")
    with _held(out):
        write_text(out / MARKER, json.dumps(asked.model_dump(mode="json"), indent=2) + "\n")
        remove_partial(out / "cells")
        folders = _folders(wanted, out)
        missing = {cell.key: cell for cell in wanted if work.done(folders[cell.key]) is None}
        for key in folders.keys() - missing.keys():
            work.tidy(folders[key])
        rows, failed = _make(wanted, missing, folders, out, work_on, make, processes)
        if tune:
            found = tries.logged(given, rows, wanted[0].versions["weights"], device)
            write_text(out / tries.LOG, found.model_dump_json(indent=2) + "\n")
            print(out / tries.LOG)
        for line in page.write(asked.reference, wanted, folders, rows, out, log):
            print(line)
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(wanted)} cells failed, the others are in {out}: " + "; ".join(failed)
        )


def plan(
    file: Path | None, out: Path, *, tune: bool = False, device: str = "cpu", processes: int = 2
) -> list[str]:
    """What `run` would take, in lines to say; nothing is written.

    Raises:
        UserError: as `run`.
    """
    require_device("--device", device)
    asked, _ = _asked(read(file), file, tune)
    wanted = cells(asked, device)
    return effort.lines(wanted, _folders(wanted, out), processes)


def _asked(given: Comparison, file: Path | None, tune: bool) -> tuple[Comparison, Log | None]:
    """What is made, and the log that its settings are from; of the tries there is none yet."""
    return (tries.spread(given), None) if tune else tries.settled(given, (file or DEFAULT).parent)


def _folders(wanted: Sequence[Cell], out: Path) -> dict[str, Path]:
    return {cell.key: out / "cells" / cell.key for cell in wanted}


def _make(
    wanted: Sequence[Cell],
    missing: dict[str, Cell],
    folders: dict[str, Path],
    out: Path,
    work_on: Work,
    make: Make,
    processes: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make what is missing, and tell of it; returns the rows of the table, and a line of each cell that failed."""
    print(f"{len(folders)} cells, {len(folders) - len(missing)} of them there", flush=True)
    rows = table.write(wanted, folders, out)
    failed, begun = [], time.monotonic()
    total, done = sum(map(effort.evaluations, missing.values())), 0
    given = [(cell, folders[key]) for key, cell in missing.items()]
    for number, (cell, error) in enumerate(work_on(given, make, processes), 1):
        if error:
            failed.append(f"{cell.label}, seed {cell.seed}: {error}")
        rows = table.write(wanted, folders, out)
        done += effort.evaluations(cell)
        seconds = (time.monotonic() - begun) * (total - done) / done
        print(
            f"[{number}/{len(missing)}] {cell.label}, seed {cell.seed}: {error or _told(rows, cell)}; "
            f"about {seconds / 60:.0f} minutes left",
            flush=True,
        )
    return rows, failed


def _told(rows: list[dict[str, Any]], cell: Cell) -> str:
    (row,) = (row for row in rows if row["cell"] == cell.key and row["method"] == cell.label)
    return ", ".join(
        f"{name.replace('_', ' ')} {row[name]:.1%}"
        for name in ("unsafe_trained", "unsafe_untrained", "utility")
    )


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep a second comparison out of the folder."""
    with open_lock(out / "lock") as lock:
        hold(lock, f"--out: {out}: another comparison works there; choose another folder")
        yield
