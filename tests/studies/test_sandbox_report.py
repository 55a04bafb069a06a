"""`sdr1 sandbox report`: what it asks of the parts, with the slow ones replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdr1.base.errors import UserError
from sdr1.studies import sandbox_report


class Here:
    """An executor of this process."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call, *arguments, **options):
        call(*arguments, **options)
        return type("Done", (), {"result": lambda self: None})()


@pytest.fixture
def asked(monkeypatch, tmp_path):
    calls: list[tuple] = []

    def train(folder, **_):
        calls.append(("train", folder.name))
        (folder / "run").mkdir(parents=True)
        (folder / "run" / "summary.json").write_text(json.dumps({"weights_sha256": "abcdef0123"}))

    def evaluate(entries, model, out, values, place):
        assert entries == sandbox_report.EVERY_PROTOCOL
        calls.append((Path(model).name, out.name, values, place.against and place.against.name))

    monkeypatch.setattr(sandbox_report, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(sandbox_report.demo, "run", train)
    monkeypatch.setattr(sandbox_report, "suite", evaluate)
    monkeypatch.setattr(
        sandbox_report, "write", lambda sources, out: calls.append(tuple(sources)) or out / "index.html"
    )
    return calls


def test_it_trains_what_is_missing_and_evaluates_both_models(asked, tmp_path):
    given = {
        "demo_folder": tmp_path / "demo",
        "evaluations": tmp_path / "evaluation",
        "settings": {"images": 2},
    }
    page = sandbox_report.run(tmp_path / "report", **given, also=[tmp_path / "ablation"])
    assert page == tmp_path / "report" / "index.html"
    trained = "trained-abcdef01"
    expected = [
        ("train", "demo"),
        ("sandbox", "base", {"images": 2}, None),
        ("model", trained, {"images": 2}, None),
        ("model", trained, {"images": 2}, "base"),
        (
            f"base={tmp_path}/evaluation/base",
            f"trained={tmp_path}/evaluation/{trained}",
            f"{tmp_path}/demo/run",
            f"{tmp_path}/ablation",
        ),
    ]
    assert asked == expected
    sandbox_report.run(tmp_path / "report", **given, also=[])
    assert [call[0] for call in asked[5:]] == [
        "sandbox",
        "model",
        "model",
        f"base={tmp_path}/evaluation/base",
    ]


def test_a_page_that_cannot_be_written_is_told_before_the_hours(asked, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((OSError, UserError)):
        sandbox_report.run(
            tmp_path / "file" / "report",
            demo_folder=tmp_path / "demo",
            evaluations=tmp_path / "evaluation",
            settings={},
            also=[],
        )
    assert asked == []
