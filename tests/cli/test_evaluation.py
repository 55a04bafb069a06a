"""`sdr1 evaluate`, with what draws and judges stubbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdr1 import cli
from sdr1.evaluation import run, suite
from sdr1.evaluation.result import Figure, Result
from sdr1.training.observers.tracking import outcome


def test_the_figures_go_to_the_run_that_the_model_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    figures = {"unsafe_trained": Figure(value=0.25, unit="share")}

    def evaluate(protocol: str, model: str, *_: object) -> Result:
        return Result(protocol=protocol, model=model, figures=figures)

    def every(entries: object, model: str, *_: object) -> dict[str, Result]:
        return {"mine": evaluate("sandbox", model)}

    monkeypatch.setattr(run, "evaluate", evaluate)
    monkeypatch.setattr(suite, "suite", every)
    monkeypatch.setattr(outcome, "measured", lambda *evaluation: told.append(evaluation))
    for protocol in ("i2p", "suite"):
        place = ["--model", "RUN/model", "--out", str(tmp_path / protocol)]
        assert cli.main(["evaluate", protocol, *place]) == 0
    assert [each[:2] for each in told] == [("RUN/model", "i2p"), ("RUN/model", "mine")]
    assert told[1][2] == Result(protocol="sandbox", model="RUN/model", figures=figures)
