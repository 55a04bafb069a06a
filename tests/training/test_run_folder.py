"""A run's folder: what is not ours is never touched, and nothing of hours goes without being asked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sdr1.base.errors import UserError
from sdr1.config.training import validate
from sdr1.training import checkpoint, run_folder
from sdr1.training.run import train


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def again(config, resume="auto", **changes):
    values = config.model_dump(mode="json") | changes
    values["run"]["resume"] = resume
    return validate(values)


def test_a_folder_of_somebody_elses_is_refused_and_untouched(small, tmp_path):
    run = tmp_path / "run"
    for name in ("checkpoints/thesis.txt", "samples/cat.png", "metrics.jsonl", "model/unet", "lock"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    before = contents(run)
    for resume in ("never", "auto"):
        with pytest.raises(
            UserError, match=r"run.directory: .*is not empty and holds no training run of sdr1"
        ):
            train(again(small(1), resume), local=True)
    assert contents(run) == before


def test_a_run_that_took_its_time_goes_only_by_hand(small, tmp_path):
    config, run = small(2), tmp_path / "run"
    train(config, local=True)
    before = contents(run)
    with pytest.raises(UserError, match=f"holds a finished run; add --resume {run}, or choose another"):
        train(small(1), local=True)
    assert contents(run) == before
    # Killed on the way to four: the checkpoints are ahead of the summary.
    shutil.copytree(run, tmp_path / "kept")
    train(again(config, iterations=4), local=True)
    shutil.copy(tmp_path / "kept" / "summary.json", run / "summary.json")
    assert run_folder.unfinished(run)
    before = contents(run)
    with pytest.raises(UserError, match="holds an unfinished run; add --resume"):
        train(config, local=True)
    assert contents(run) == before
    shutil.rmtree(run / "checkpoints")
    for resume in ("never", "auto"):
        with pytest.raises(UserError, match="holds a run whose checkpoints are gone; choose"):
            train(again(config, resume), local=True)


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(small, tmp_path):
    config, run = small(1), tmp_path / "run"
    run.mkdir()
    (run / run_folder.MARKER).write_text('{"config": {}}')
    os.mkfifo(run / "lock")
    with (
        pytest.raises(
            UserError, match=r"run.directory: .* cannot be written \(lock is not a regular file\); "
        ),
        run_folder.held(config),
    ):
        pass


def test_a_run_of_an_earlier_version_goes_on(small, tmp_path):
    whole = train(small(3, run={"directory": str(tmp_path / "whole")}), local=True)
    config, run = small(2), tmp_path / "run"
    train(config, local=True)
    (run / run_folder.MARKER).unlink()
    (run / "notes.txt").write_text("mine")
    assert train(again(config, iterations=3), local=True).weights_sha256 == whole.weights_sha256
    assert (run / "notes.txt").read_text() == "mine"
    assert run_folder.config_of(run)["iterations"] == 3


def test_what_a_person_put_into_a_runs_folder_stays(small, tmp_path):
    config, run = small(2), tmp_path / "run"
    train(config, local=True)
    shutil.copytree(run / "checkpoints" / "000001", run / "checkpoints" / "000001-before-the-fire")
    mine = ["model/README.md", "samples/000009-safe-and-mine.png", "notes/.env.local"]
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    values = {"learner": config.learner.model_dump() | {"learning_rate": 2e-3}}
    train(again(config, iterations=5, **values), local=True)
    assert [(run / name).read_text() for name in mine] == ["mine"] * 3
    assert (run / "checkpoints" / "000001-before-the-fire" / checkpoint.FACTS).is_file()
    assert not list(run.rglob("*sdr1-partial*"))


def test_rows_and_pictures_of_weights_that_were_thrown_away_are_made_again(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking = {"enabled": True, "images_every": 1}
    run = tmp_path / "run"
    config = small(3, tracking=tracking)
    train(config, local=True)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "000003")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    first = contents(run / "samples")
    identity = (run / "run.json").read_text()
    other = again(config, policy=config.policy.model_dump(mode="json") | {"guidance_scale": 4.0})
    train(other, local=True)
    made = (run / "metrics.jsonl").read_text().splitlines()
    assert made[:2] == rows[:2]
    assert json.loads(made[2])["reward_safe"] != json.loads(rows[2])["reward_safe"]
    now = contents(run / "samples")
    assert {name for name in now if now[name] != first[name]} == {"000002-safe.png", "000002-unsafe.png"}
    assert (run / "run.json").read_text() != identity, "MLflow cannot take the old step back"


def test_rows_made_before_the_first_checkpoint_go_with_their_settings(small, tmp_path):
    config, run = small(1), tmp_path / "run"
    train(config, local=True)
    row = (run / "metrics.jsonl").read_text()
    for name in ("summary.json", "checkpoints", "model"):
        shutil.rmtree(run / name, ignore_errors=True)
    (run / "summary.json").unlink()
    train(again(config), local=True)
    assert (run / "metrics.jsonl").read_text() == row, "the same bits again"
    for name in ("checkpoints", "model"):
        shutil.rmtree(run / name)
    (run / "summary.json").unlink()
    train(again(config, seed=5), local=True)
    assert json.loads((run / "metrics.jsonl").read_text())["reward_safe"] != json.loads(row)["reward_safe"]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"policy": {"lora": {"target_modules": ["nope"]}}}, "policy.lora.target_modules"),
        ({"reward": {"terms": {"mine": {"import": "nowhere:factory"}}}}, "reward.terms.mine"),
        ({"reward": {"model": "local-dir:/nowhere"}}, "reward.model"),
        ({"checkpoint": {"best": "-unsafe"}}, "checkpoint.best"),
    ],
)
def test_a_start_that_is_refused_leaves_nothing(small, tmp_path, monkeypatch, sections, said):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sections = {**sections, "policy": {"trainable": "lora", **sections.get("policy", {})}}
    config = small(1, run={"directory": str(tmp_path / "a" / "run")}, tracking={"enabled": True}, **sections)
    with pytest.raises(UserError, match=said):
        train(config, local=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "a" / "run").mkdir(parents=True)
    with pytest.raises(UserError, match=said):
        train(config, local=True)
    assert not os.listdir(tmp_path / "a" / "run")
