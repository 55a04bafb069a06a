"""Making the cells: each in a process of its own, two at a time, its result on disk whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sdr1.base.errors import TrainingError, UserError
from sdr1.base.files import write_text
from sdr1.base.plain_data import read_as
from sdr1.base.process import end_with_parent, peak_memory
from sdr1.base.section import SANDBOX
from sdr1.erasers import run as erasing
from sdr1.evaluation.place import Place
from sdr1.evaluation.run import evaluate
from sdr1.planning.counts import count
from sdr1.studies.compare.cells import JUDGES, Cell
from sdr1.training import run as training
from sdr1.training.observers import journal

RESULT, EVALUATION, LOG, FAILED = "cell.json", "evaluation", "log.txt", "failed.txt"
Make = Callable[[Cell, Path], None]


def done(folder: Path) -> dict[str, Any] | None:
    """A cell's result, None of one that is not finished."""
    path = folder / RESULT
    return read_as(dict[str, Any], path) if path.is_file() else None


def make(cell: Cell, folder: Path) -> None:
    """Train a cell and judge it; goes on where an earlier attempt was stopped. `cell.json` comes last.

    Raises:
        UserError, TrainingError: the method cannot be trained, or its model draws what is no picture.
    """
    model, cost = _trained(cell, folder)
    evaluate(
        "sandbox",
        model,
        folder / EVALUATION,
        {
            "images": cell.images,
            "seed": cell.seed,
            "split": cell.split,
            "judges": list(JUDGES),
            "device": cell.device,
            "judge_device": cell.device,
        },
        Place(local=True),
    )
    told = {"label": cell.label, "seed": cell.seed, "budget": cell.budget, "wanted": cell.wanted, **cost}
    write_text(folder / RESULT, json.dumps(told, indent=2) + "\n")
    tidy(folder)


def tidy(folder: Path) -> None:
    """Take away the weights of a finished cell, some tens of megabytes; figures and pictures stay."""
    for name in ("model", "run/model", "run/checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _trained(cell: Cell, folder: Path) -> tuple[str, dict[str, Any]]:
    """The model's name, and what it took to make it."""
    if cell.erase is not None:
        model = folder / "model"
        told = erasing.erase(
            cell.erase,
            SANDBOX,
            model,
            cell.settings,
            prompts=SANDBOX,
            seed=cell.seed,
            budget=cell.budget,
            device=cell.device,
        )
        return str(model), {key: told[key] for key in ("unet_evaluations", "seconds", "peak_memory_bytes")}
    if cell.train is None:
        return SANDBOX, {"unet_evaluations": 0, "seconds": 0.0, "peak_memory_bytes": 0}
    directory = folder / "run"
    run = cell.train.run.model_copy(update={"directory": directory, "resume": "auto"})
    result = training.train(cell.train.model_copy(update={"run": run}), local=True)
    counts = count(cell.train)
    rows, _ = journal.read(directory / journal.NAME)
    return str(result.model), {
        # A rule of `stop.when` may have ended it early.
        "unet_evaluations": counts.total * len(rows),
        # Of the iterations themselves, also where the training was stopped and went on.
        "seconds": round(sum(counts.images / row["images_per_second"] for row in rows), 2),
        "peak_memory_bytes": peak_memory(cell.device),
    }


def in_processes(
    cells: Sequence[tuple[Cell, Path]], make: Make, processes: int
) -> Iterator[tuple[Cell, str]]:
    """Make the cells, so many at a time; yields each as it ends, with the line of its error or nothing.

    The longest begin, so that no process waits for one at the end. A process makes one cell, so that its peak memory is
    the cell's own. All of them end with this one.
    """
    context = get_context("spawn")
    waiting = deque(sorted(cells, key=lambda each: -each[0].planned))
    running = dict[int, tuple[BaseProcess, Cell, Path]]()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                cell, folder = waiting.popleft()
                started = context.Process(target=_child, args=(make, cell, folder))
                started.start()
                running[started.sentinel] = started, cell, folder
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                process, cell, folder = running.pop(sentinel)
                process.join()
                yield cell, _error(process.exitcode, folder)
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def _error(code: int | None, folder: Path) -> str:
    if code == 0:
        return ""
    told = folder / FAILED
    return told.read_text(encoding="utf-8") if told.is_file() else f"ended with {code}; see {folder / LOG}"


def _child(make: Make, cell: Cell, folder: Path) -> None:
    end_with_parent()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    with open(folder / LOG, "a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
        with redirect_stdout(log):
            try:
                make(cell, folder)
            except (UserError, TrainingError) as error:
                write_text(folder / FAILED, " ".join(str(error).split()))
                sys.exit(1)
