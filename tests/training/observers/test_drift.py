"""What breaks is told once, from the record; what moves a little is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sdr1.training.observers.drift import Drift


def told(rows: list[dict[str, float]], caplog) -> list[str]:
    """Warnings of a run with this record, by the names of their metrics."""
    drift = Drift(SimpleNamespace(rows=rows))
    for iteration, row in enumerate(rows):
        drift.iteration(iteration, row, (), None)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("name", "start", "end", "said"),
    [
        ("prediction_norm", 1.0, 1.2, "1.20 x as long as the base model's"),
        ("prediction_norm", 1.0, 0.8, "0.80 x as long"),
        ("brightness", 0.5, 0.7, "went from 0.50 to 0.70"),
        ("saturation", 0.5, 0.3, "went from 0.50 to 0.30"),
        ("monitor_gap", 0.02, -0.01, "the reward prefers by"),
    ],
)
def test_a_drift_is_told_once(name, start, end, said, caplog):
    rows = [{name: start}] * 5 + [{}] + [{name: end}] * 9
    (line,) = told(rows, caplog)
    assert f": {name}: " in line
    found = Drift(SimpleNamespace(rows=rows)).drifted(len(rows))
    assert said in found[name]


def test_what_stays_near_or_is_young_is_not_told(caplog):
    steady = {"prediction_norm": 1.05, "brightness": 0.5, "saturation": 0.2, "monitor_gap": 0.01}
    moved = {"prediction_norm": 0.95, "brightness": 0.56, "saturation": 0.15, "monitor_gap": 0.001}
    assert told([steady] * 6 + [moved] * 6, caplog) == []
    assert told([{"prediction_norm": 2.0}] * 4, caplog) == []
