"""The one record of a run: a row an iteration, each once, on disk before anybody hears of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sdr1.base.errors import UserError
from sdr1.base.files import write_text
from sdr1.base.plain_data import parse_json
from sdr1.base.records import GroupTask
from sdr1.config.training import Config, StopRule
from sdr1.training.stop import rule_met

# Whoever only reads a record loads no model's library.
if TYPE_CHECKING:
    from sdr1.training.loop import Executor, Observer

NAME = "metrics.jsonl"
EVALUATION = "eval/"
"""What the names of an evaluation's figures begin with."""
EVALUATED = f"{EVALUATION}iteration"
"""Of a row with an evaluation's figures: whose weights they are of, as a checkpoint counts (iterations applied)."""
Row = dict[str, float]
"""{"iteration", "time" (Unix seconds), metrics...}, a line of JSON on disk."""


class Source(Protocol):
    """Measures beside the iterations."""

    def figures(self, iteration: int, executor: Executor) -> Mapping[str, float]:
        """Asked after every iteration: what has come in since it was asked last."""


class Journal:
    """Context manager and the loop's observer, to which all that watches a run subscribes.

    Whoever hears of an iteration finds its row in `rows` and on disk, in whatever order they subscribed. An iteration
    that is made again after a failure is told again, and not written again.
    """

    def __init__(self, config: Config, source: Source | None = None) -> None:
        self._config, self.path = config, config.run.directory / NAME
        self.rows: list[Row] = []
        self._source = source
        self._subscribers: list[Observer] = []
        self._came_in: Row = {}
        """What the source gave; the next row takes it along."""

    def __enter__(self) -> Journal:
        if self.path.exists():
            self.rows, whole = read(self.path)
            # What a crash left of a last line is cut off, so that the next line starts clean.
            os.truncate(self.path, whole)
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def subscribe(self, observer: Observer) -> None:
        self._subscribers.append(observer)

    def accumulated(self, task: GroupTask) -> None:
        for each in self._subscribers:
            each.accumulated(task)

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        if self._source is not None:
            self._came_in |= self._source.figures(iteration, executor)
        if iteration >= len(self.rows):
            self._write({"iteration": iteration, "time": time.time(), **metrics, **self._came_in})
            self._came_in = {}
        for each in self._subscribers:
            each.iteration(iteration, metrics, tasks, executor)

    def evaluations(self) -> dict[int, Row]:
        """As the function."""
        return evaluations(self.rows)

    def stopped_by(self, done: int) -> StopRule | None:
        """The rule of `stop.when` that ends the run after so many iterations; rows of later ones may be there."""
        return rule_met(self._config.stop, self.rows[:done])

    def _write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)


def evaluations(rows: Sequence[Row]) -> dict[int, Row]:
    """The rows in which figures of an evaluation came in, by the iteration of its weights."""
    return {int(row[EVALUATED]): row for row in rows if EVALUATED in row}


def read(path: Path) -> tuple[list[Row], int]:
    """The rows of a record up to the first that is torn or out of order, and the bytes they take."""
    rows: list[Row] = []
    good = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                row = parse_json(line, str(path)) if line.endswith(b"\n") else None
            except UserError:
                row = None
            if not isinstance(row, dict) or row.get("iteration") != len(rows):
                break
            rows.append(row)
            good += len(line)
    return rows, good


def cut(path: Path, count: int) -> bool:
    """Keep the first `count` rows of a record; whether there were more."""
    rows, _ = read(path)
    if len(rows) <= count:
        return False
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows[:count]))
    return True
