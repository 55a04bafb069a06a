"""The demo's figures: rows, mean over seeds and the change line against hand counts; and what it leaves in files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdr1 import cli
from sdr1.base.errors import Terminated
from sdr1.base.process import end_with_parent
from sdr1.base.records import LearnerState, Weights
from sdr1.config.training import Config
from sdr1.evaluation.protocols.sandbox import UNTRAINED
from sdr1.evaluation.sandbox_rows import DEPLOYED
from sdr1.sandbox.captions import TASKS
from sdr1.sandbox.prompts import CONCEPTS, NEAR
from sdr1.sandbox.world import COLOURS
from sdr1.studies import demo
from sdr1.studies.sheets import contact_sheet
from sdr1.training import checkpoint


def evaluation(trained: float, flame: float, blade: float, utility: float) -> dict[str, Any]:
    def behind(n: int) -> dict[str, Any]:
        return {
            "unsafe_trained": n,
            "unsafe_untrained": dict.fromkeys(UNTRAINED, n),
            "unsafe_generic": n,
            "unsafe_beside": n,
            "shape_kept": n,
            "utility": {**dict.fromkeys(TASKS, n), "overall": 6 * n},
            "false_alarm": 6 * n,
            "over_refusal": n,
            "coherent_unsafe": 10 * n,
            "coherent_safe": 6 * n,
            "colours": 2 * n,
        }

    return {
        "split": "final",
        "seed": 0,
        "sampler": asdict(DEPLOYED),
        "unsafe_trained": trained,
        # Three concepts like the flame, three like the blade.
        "unsafe_untrained": dict(zip(UNTRAINED, 3 * (flame, blade), strict=True)),
        "unsafe_generic": 0.25,
        "unsafe_beside": 0.125,
        "shape_kept": 0.75,
        "utility": {**dict.fromkeys(TASKS, utility), "overall": utility},
        "false_alarm": 0.01,
        "over_refusal": 0.2,
        "coherent_unsafe": 0.9,
        "coherent_safe": 0.95,
        "colours": dict.fromkeys(COLOURS, 1 / 6),
        "images": behind(50),
        "prompts": behind(5),
    }


BEFORE = evaluation(0.8, 1.0, 0.5, 0.80)
AFTER = evaluation(0.02, 0.1, 0.25, 0.815)


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """No training, no pictures from a model: what was trained and judged, and with what evaluations."""
    stub = SimpleNamespace(configs=[], judged=[], results=[(BEFORE, AFTER)])

    def train(config: Config) -> SimpleNamespace:
        stub.configs.append(config)
        folder = config.run.directory
        folder.mkdir(parents=True)
        facts = {"seed": config.seed, "iterations": 2, "seconds": 1.5, "weights_sha256": "ab"}
        (folder / "summary.json").write_text(json.dumps(facts))
        row = {"iteration": 0, "reward_safe": 0.5, "reward_unsafe": 0.1, "unsafe_rate": 0.9, "kl": 0.0}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return SimpleNamespace(model=folder / "model")

    def measure_both(model: str, images: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        stub.judged.append((model, images, seed))
        return stub.results[(len(stub.judged) - 1) % len(stub.results)]

    class Painter:
        def __init__(self, pipeline: str) -> None:
            self.shade = 200 if pipeline == "sandbox" else 90

        def draw(self, rows: list[Any]) -> np.ndarray:
            stub.drawn = rows
            return np.full((len(rows), 32, 32, 3), self.shade, np.uint8)

    monkeypatch.setattr(demo, "check", lambda config: None)
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo, "_measure_both", measure_both)
    monkeypatch.setattr(demo, "load_pipeline", lambda name: name)
    monkeypatch.setattr(demo, "Painter", Painter)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return stub


def test_change_is_relative_for_the_unsafe_and_points_for_utility():
    change = demo.change(BEFORE, AFTER)
    assert change == {
        "trained": pytest.approx(-0.975),  # 0.8 -> 0.02
        "untrained": pytest.approx(-1.15 / 1.5),  # 1.5 -> 0.35 for each two
        "untrained_worst": pytest.approx(-0.5),  # the blade's 0.5 -> 0.25, not the flame's -90 %
        "utility_points": pytest.approx(1.5),
    }
    line = demo.headline(change)
    assert line == "trained -97.5 %, untrained -76.7 % (worst -50.0 %), utility +1.5 points"
    worst = demo.headline({**dict.fromkeys(change, -1.0), "utility_points": -100.0})
    assert len(worst) < 80


def test_a_rise_from_nothing_has_no_relative_figure():
    nothing = evaluation(0, 0, 0.5, 0.8)
    change = demo.change(nothing, evaluation(0.1, 0.1, 0.6, 0.8))
    assert change["trained"] is None
    assert change["untrained_worst"] == pytest.approx(0.2)
    assert demo.headline(change).startswith("trained from nothing, untrained +40.0 %")


def test_rows_hold_every_rate_with_its_numbers():
    table = {"before": BEFORE, "after": AFTER, "colour_distance": 0.07}
    rows = {row.name: row[1:] for row in demo.rows(table)}
    assert rows["unsafe: skull (trained)"] == (50, 5, 0.8, 0.02)
    assert rows["unsafe: blade (never trained on)"] == (50, 5, 0.5, 0.25)
    assert rows["shape beside an unsafe thing kept"] == (50, 5, 0.75, 0.75)
    assert rows["utility: overall"] == (300, 30, 0.80, 0.815)
    assert rows["false alarm"] == (300, 30, 0.01, 0.01)
    assert rows["colours moved from the base's"] == (100, 10, 0.0, 0.07)
    assert len(rows) == 1 + len(UNTRAINED) + 3 + len(TASKS) + 1 + 1 + 3 + 1


def test_mean_is_of_the_rates_and_its_change_from_mean_to_mean():
    other = evaluation(1.0, 0.6, 0.5, 0.9), evaluation(0.5, 0.6, 0.0, 0.8)
    tables = [
        {"before": before, "after": after, "colour_distance": moved}
        for (before, after), moved in (((BEFORE, AFTER), 0.1), (other, 0.3))
    ]
    mean = demo.mean(tables)
    rows = {row.name: row[1:] for row in demo.rows(mean)}
    assert rows["unsafe: skull (trained)"] == (100, 5, pytest.approx(0.9), pytest.approx(0.26))
    assert rows["unsafe: flame (never trained on)"] == (100, 5, pytest.approx(0.8), pytest.approx(0.35))
    assert rows["utility: counting"] == (100, 5, pytest.approx(0.85), pytest.approx(0.8075))
    assert mean["colour_distance"] == pytest.approx(0.2)
    assert mean["change"] == {
        "trained": pytest.approx(0.26 / 0.9 - 1),
        "untrained": pytest.approx(0.475 / 1.3 - 1),
        "untrained_worst": pytest.approx(0.35 / 0.8 - 1),
        "utility_points": pytest.approx(-4.25),
    }


def test_one_seed_leaves_figures_and_pictures(stubbed, tmp_path, capsys):
    out = tmp_path / "demo"
    demo.run(out, seeds=[7], images=50, overrides=["iterations=2"])
    assert (stubbed.configs[0].seed, stubbed.configs[0].iterations) == (7, 2)
    assert stubbed.judged == [(str(out / "run" / "model"), 50, 7)]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["seed"], summary["iterations"], summary["weights_sha256"]) == (7, 2, "ab")
    assert summary["before"] == BEFORE
    assert summary["after"]["unsafe_untrained"] == AFTER["unsafe_untrained"]
    assert summary["after"]["images"]["false_alarm"] == 300
    assert summary["change"] == demo.change(BEFORE, AFTER)
    # 4 columns of two pictures 32 wide with a gap of 2, enlarged 4 times; base left, trained right.
    with Image.open(out / "before_after.png") as sheet:
        assert sheet.width == 4 * (66 * 4 + 6) + 6
        row = np.asarray(sheet.convert("L"))[40, :]
    assert (row[20], row[20 + 34 * 4]) == (200, 90)
    # Four of every topic, of those with few pictures too, and with the noise of the judged ones.
    last = 4 * len(CONCEPTS)
    assert [row.id for row in stubbed.drawn[last - 2 : last + 2]] == [
        "generic-0002",
        "generic-0003",
        "skull_beside-0000",
        "skull_beside-0001",
    ]
    assert stubbed.drawn[last - 2].seed == 7 * 1_000_003 + 2
    assert stubbed.drawn[-1].id == f"{NEAR}-0003"
    assert (out / "curves.png").stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[: lines.index(demo.headline(summary["change"])) + 1])) <= 80
    assert (
        f"curves and samples in MLflow: mlflow ui --backend-store-uri sqlite:///{out / 'mlflow.db'}" in lines
    )
    assert not (out / "seeds.json").exists()


def test_the_outcome_goes_to_the_run_that_it_is_of(stubbed, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(demo, "conclude", lambda *outcome: told.append(outcome))
    demo.run(tmp_path / "demo", seeds=[7], images=50, overrides=[])
    ((run, before, after, headline, pictures),) = told
    assert run == tmp_path / "demo" / "run"
    assert after["unsafe_untrained/blade"] == AFTER["unsafe_untrained"]["blade"]
    assert before["utility/overall"] == BEFORE["utility"]["overall"]
    assert before.keys() == after.keys()
    assert len(before) == 1 + len(UNTRAINED) + 3 + len(TASKS) + 1 + 1 + 3
    assert headline == demo.headline(demo.change(BEFORE, AFTER))
    assert all((tmp_path / "demo" / name).is_file() for name in pictures)


def test_several_seeds_leave_their_mean(stubbed, tmp_path, capsys):
    stubbed.results.append((evaluation(1.0, 0.6, 0.5, 0.9), evaluation(0.5, 0.6, 0.0, 0.8)))
    demo.run(tmp_path, seeds=[1, 2], images=50, overrides=[])
    assert [config.run.directory for config in stubbed.configs] == [
        tmp_path / "seed-1" / "run",
        tmp_path / "seed-2" / "run",
    ]
    seeds = json.loads((tmp_path / "seeds.json").read_text())
    each = [json.loads((tmp_path / f"seed-{seed}" / "summary.json").read_text()) for seed in (1, 2)]
    assert seeds["seeds"] == [1, 2]
    assert seeds["each"] == each
    assert seeds["mean"] == demo.mean(each)
    assert demo.headline(seeds["mean"]["change"]) in capsys.readouterr().out


def test_a_model_trained_earlier_can_be_judged(stubbed, tmp_path):
    model = stubbed_run(tmp_path / "earlier")
    table = demo.judge(tmp_path / "judged", 3, 10, model)
    assert stubbed.judged == [(str(model), 10, 3)]
    assert not stubbed.configs
    assert (table["iterations"], table["weights_sha256"]) == (9, "cd")
    assert json.loads((tmp_path / "judged" / "summary.json").read_text()) == table
    assert (tmp_path / "judged" / "before_after.png").is_file()


@pytest.mark.filterwarnings("error:No artists")
def test_curves_of_a_run_without_kl_have_no_empty_panel(tmp_path):
    journal = tmp_path / "metrics.jsonl"
    rows = [{"iteration": n, "reward_unsafe": n / 5, "unsafe_rate": 1 - n / 5, "kl": 0.1} for n in range(5)]
    widths = {}
    for name in ("kl", "none"):
        kept = [{key: value for key, value in row.items() if name == key or key != "kl"} for row in rows]
        journal.write_text("".join(json.dumps(row) + "\n" for row in kept))
        with Image.open(demo._draw_curves(tmp_path / f"{name}.png", journal)) as picture:
            widths[name] = picture.width
    assert widths["none"] / widths["kl"] == pytest.approx(2 / 3, abs=0.01)


def test_a_base_that_is_known_is_not_judged_again(stubbed, tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(demo, "_measure", lambda *given: judged.append(given) or AFTER)
    model = stubbed_run(tmp_path / "earlier")
    table = demo.judge(tmp_path / "judged", 3, 50, model, before=BEFORE)
    assert judged == [(str(model), 50, 3)]
    assert not stubbed.judged
    assert (table["before"], table["after"]) == (BEFORE, AFTER)


def stubbed_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"iterations": 9, "weights_sha256": "cd"}))
    return folder / "model"


@pytest.mark.parametrize(
    ("overrides", "server", "hint"),
    [
        (
            ["run.directory={tmp}/else/run"],
            None,
            "mlflow ui --backend-store-uri sqlite:///{tmp}/else/mlflow.db",
        ),
        ([], "http://tracking:5000", "MLflow: http://tracking:5000"),
        (["tracking.enabled=false"], None, None),
    ],
)
def test_the_mlflow_hint_says_where_the_run_is(
    overrides: list[str],
    server: str | None,
    hint: str | None,
    stubbed: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    filled = [override.replace("{tmp}", str(tmp_path)) for override in overrides]
    demo.run(tmp_path / "demo", seeds=[0], images=5, overrides=filled)
    printed = capsys.readouterr().out
    assert ("MLflow" in printed) == (hint is not None)
    assert (hint or "").replace("{tmp}", str(tmp_path)) in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=4"], "--seed=4"),
        (["--seed", "1", "--seed", "2", "run.directory=one"], "run.directory=one"),
        (["learner.learning_rate=-1"], "learner.learning_rate"),
    ],
)
def test_overrides_that_cannot_be_meant_stop_the_demo(
    arguments: list[str], said: str, stubbed: SimpleNamespace, tmp_path: Path, capsys
) -> None:
    assert cli.main(["sandbox", "demo", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not stubbed.configs
    assert not (tmp_path / "out").exists()


def test_a_demo_that_is_stopped_names_no_option_it_lacks(tmp_path, monkeypatch, capsys):
    def stopped(config):
        raise Terminated("go on with --resume")

    monkeypatch.setattr(demo, "train", stopped)
    assert cli.main(["sandbox", "demo", "--out", str(tmp_path)]) == 143
    said = capsys.readouterr().err
    assert "the same command goes on" in said
    assert "--resume" not in said


def test_both_models_are_judged_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple] = []

    class Pool:
        def __init__(self, size: int, mp_context: Any, initializer: Any) -> None:
            assert mp_context.get_start_method() == "spawn"
            assert initializer is end_with_parent

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, job: Callable, model: str, *options: int) -> SimpleNamespace:
            calls.append((job, model, *options))
            return SimpleNamespace(result=lambda: model)

    monkeypatch.setattr(demo, "ProcessPoolExecutor", Pool)
    assert demo._measure_both("trained", 9, 5) == ["sandbox", "trained"]
    assert calls == [(demo._measure, "sandbox", 9, 5), (demo._measure, "trained", 9, 5)]


def test_a_sheet_keeps_its_parts_apart():
    pictures = np.full((3, 32, 32, 3), 128, np.uint8)
    titles = ["short", "a title of many words that needs several lines", "one\ntwo"]
    with Image.open(io.BytesIO(contact_sheet(pictures, titles, columns=2, heading="a heading"))) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    grey = pixels == 128
    first, second = (np.flatnonzero(grey[:, 6 + x]) for x in (0, 134))
    assert len(first) == 2 * 128, "two pictures in the first column, nothing drawn over them"
    assert len(second) == 128
    # Heading, picture, title, picture, title: ink between the pictures and above the first.
    dark = np.flatnonzero((pixels < 100).any(axis=1))
    assert dark.min() < first.min()
    assert ((dark > first.min() + 128) & (dark < first.max() - 127)).any()
    assert dark.max() > first.max()
    assert dark.max() < len(pixels), "the last title is whole"
    with pytest.raises(ValueError, match="titles: 1 for 3 pictures"):
        contact_sheet(pictures, ["one"])


def test_the_decisions_sheet_shows_generated_blurred_and_spoiled_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from sdr1.evaluation import painter
    from sdr1.studies import sheets as sheet

    shown: dict[str, Any] = {}

    def draw(self: painter.Painter, rows: list[Any]) -> np.ndarray:
        return np.full((len(rows), 32, 32, 3), 230, np.uint8)

    def keep(images: np.ndarray, titles: list[str], columns: int) -> bytes:
        shown.update(images=images, titles=titles)
        return b"a sheet"

    monkeypatch.setattr(painter.Painter, "draw", draw)
    monkeypatch.setattr(sheet, "contact_sheet", keep)
    assert cli.main(["sandbox", "draw", "decisions", "--out", str(tmp_path / "d.png")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"the base model draws {8 * (len(TASKS) + len(CONCEPTS))} pictures",
        str(tmp_path / "d.png"),
    ]
    assert (tmp_path / "d.png").read_bytes() == b"a sheet"
    titles = shown["titles"]
    assert len(titles) == len(shown["images"]) == 8 * (len(TASKS) + len(CONCEPTS) + 1 + 2)
    # On an empty ground nothing can be right, and nothing unsafe or coherent.
    safe, end = 8 * len(TASKS), 8 * (len(TASKS) + len(CONCEPTS))
    assert all(title.splitlines()[1:] == ["reads: nothing", "WRONG, not coherent"] for title in titles[:safe])
    assert all(
        title.splitlines()[1:] == ["reads: nothing", "NOT UNSAFE, not coherent"] for title in titles[safe:end]
    )
    blurred, spoiled = titles[end : end + 8], titles[end + 8 :]
    assert all(title.startswith("blurred: ") for title in blurred)
    assert all(title.startswith("spoiled: ") for title in spoiled)
    assert sum(title.endswith("\nas drawn") for title in blurred + spoiled) >= 22


def stopped_run(folder: Path, config: Config) -> None:
    """What `train` leaves when it is killed after its first iteration."""
    state = LearnerState(0, (Weights(1, np.zeros(4, np.uint8), 0),), None, {})
    checkpoint.save(folder / "run", state, config, {})


@pytest.mark.parametrize("overrides", [[], ["tracking.enabled=false"]])
def test_a_demo_that_was_stopped_or_done_goes_on(stubbed, tmp_path, overrides):
    config = demo.load(demo.PRESET, [f"run.directory={tmp_path / 'run'}", "seed=0"])
    stopped_run(tmp_path, config)
    asked = demo.load(demo.PRESET, [f"run.directory={tmp_path / 'run'}", *overrides, "seed=0"])
    assert demo._going_on(asked).run.resume == "auto"
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert demo._going_on(asked).run.resume == "auto"


def test_a_demo_of_other_settings_is_refused_and_takes_nothing_away(stubbed, tmp_path, capsys):
    out = tmp_path / "demo"
    stopped_run(out, demo.load(demo.PRESET, [f"run.directory={out / 'run'}", "seed=0"]))
    assert cli.main(["sandbox", "demo", "--out", str(out), "iterations=3"]) == 2
    said = capsys.readouterr().err
    assert f"error: iterations: 3: {out / 'run'} holds a run with 76; choose another --out" in said
    assert checkpoint.newest(out / "run") is not None
    assert not stubbed.configs


def test_a_folder_of_somebody_elses_is_not_the_demos(tmp_path, capsys):
    thesis = tmp_path / "v" / "checkpoints" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("x")
    arguments = ["sandbox", "demo", "--out", str(tmp_path / "out"), f"run.directory={tmp_path / 'v'}"]
    assert cli.main(arguments) == 2
    assert "run.directory" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [thesis]
