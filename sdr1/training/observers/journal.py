"""The run's own record: one line of JSON an iteration, on disk before anything else hears of it, each once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.files import write_text
from sdr1.base.plain_data import parse_json
from sdr1.base.records import GroupTask
from sdr1.config.training import Config
from sdr1.training.loop import Executor

NAME = "metrics.jsonl"


class Journal:
    """Observer that appends to `metrics.jsonl`; iterations made again after a failure are not written again.

    `rows` holds every line: {"iteration", "time" (Unix seconds), metrics...}.
    """

    def __init__(self, config: Config) -> None:
        self.path = config.run.directory / NAME
        self.rows: list[dict[str, Any]] = []
        self.ready: dict[str, float] = {}
        """Metrics that came in beside the iterations; the next row takes them along."""

    def __enter__(self) -> Journal:
        if self.path.exists():
            self.rows, whole = read(self.path)
            # What a crash left of a last line is cut off, so that the next line starts clean.
            os.truncate(self.path, whole)
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def accumulated(self, task: GroupTask) -> None:
        pass

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        if iteration < len(self.rows):
            return
        row = {"iteration": iteration, "time": time.time(), **metrics, **self.ready}
        self.ready.clear()
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.append(row)


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a record up to the first that is torn or out of order, and the bytes they take."""
    rows: list[dict[str, Any]] = []
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
