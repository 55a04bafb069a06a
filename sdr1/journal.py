"""The run's own record: one line of JSON an iteration, on disk before anything else hears of it, each once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdr1.config import Config
from sdr1.loop import Executor
from sdr1.types import GroupTask


class Journal:
    """Observer that appends to `metrics.jsonl`; iterations made again after a failure are not written again.

    `rows` holds every line: {"iteration", "time" (Unix seconds), metrics...}.
    """

    def __init__(self, config: Config) -> None:
        self.path = config.run.directory / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.ready: dict[str, float] = {}
        """Metrics that came in beside the iterations; the next row takes them along."""

    def __enter__(self) -> Journal:
        if self.path.exists():
            self.rows = _read(self.path)
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


def _read(path: Path) -> list[dict[str, Any]]:
    """Complete lines; what a crash left of a last line is cut off, so that the next line starts clean."""
    rows: list[dict[str, Any]] = []
    good = 0
    with open(path, "rb+") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None or row.get("iteration") != len(rows):
                break
            rows.append(row)
            good += len(line)
        file.truncate(good)
    return rows
