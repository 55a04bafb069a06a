"""A run that is stopped and goes on: same bits, every step once; bad checkpoints are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError

from sdr1.base.errors import Terminated, TrainingError, UserError
from sdr1.base.files import file_sha256
from sdr1.base.process import raise_if_stopped
from sdr1.base.records import LearnerState, Moments, Weights
from sdr1.config.training import validate
from sdr1.models.flat import checksum
from sdr1.training import checkpoint
from sdr1.training.learner import Learner
from sdr1.training.run import _sigterm, train
from sdr1.training.run_folder import held


def resumed(config, **changes):
    values = config.model_dump(mode="json")
    values["run"]["resume"] = "auto"
    for name, value in changes.items():
        values[name] = value
    return validate(values)


FORWARD = {
    "policy": {"solver": "DDPMScheduler", "noise_window": None},
    "rollout": {"group_size": 3, "weights": "ema"},
    "learner": {"objective": "forward", "advantage_scale": "pooled", "ema_decay": 0.5},
}


@pytest.mark.parametrize(
    "options",
    [
        {"learner": {"advantage_scale": "pooled"}},
        {"learner": {"advantage_scale": "pooled"}, "rollout": {"group_size": 3, "max_staleness": 1}},
        FORWARD,
    ],
    ids=["on-policy", "stale", "forward, drawn by an average"],
)
def test_stopped_and_resumed_equals_undisturbed(small, tmp_path, options):
    whole = train(small(4, run={"directory": str(tmp_path / "whole")}, **options), local=True)
    config = small(2, **options)
    first = train(config, local=True)
    assert first.weights_sha256 != whole.weights_sha256
    second = train(resumed(config, iterations=4), local=True)
    assert second.weights_sha256 == whole.weights_sha256
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]


def test_staleness_of_one_changes_the_run_and_is_reported(small, tmp_path):
    config = small(2, rollout={"max_staleness": 1})
    stale = train(config, local=True)
    fresh = train(small(2, run={"directory": str(tmp_path / "fresh")}), local=True)
    assert stale.weights_sha256 != fresh.weights_sha256
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["staleness"] for row in rows] == [0, 1]


def test_a_crash_between_journal_and_checkpoint_leaves_no_gap_and_no_repeat(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = small(3, tracking={"enabled": True, "images_every": 1})
    whole = train(config, local=True)
    run = tmp_path / "run"
    # As after kill -9: the last iteration is in the journal and in MLflow, its checkpoint is not; a line is torn.
    shutil.rmtree(run / "checkpoints" / "000003")
    (run / "summary.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 3, "ti')
    again = train(resumed(config), local=True)
    assert again.weights_sha256 == whole.weights_sha256
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("sdr1").experiment_id])
    history = client.get_metric_history(found.info.run_id, "5_health/learning_rate")
    assert sorted(point.step for point in history) == [0, 1, 2]


@pytest.fixture
def silent_server():
    """The address of a server that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("answers", ["refuses", "is silent"])
def test_a_tracker_that_is_away_neither_stops_nor_loses_anything(
    small, tmp_path, monkeypatch, silent_server, answers
):
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", silent_server if answers == "is silent" else "http://127.0.0.1:9"
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "400")
    config = small(2, tracking={"enabled": True, "wait_seconds": 0.5})
    begin = time.monotonic()
    train(config, local=True)
    # One request to a silent server takes longer.
    assert time.monotonic() - begin < 300
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    train(resumed(config, tracking={"enabled": True, "wait_seconds": 60}), local=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("sdr1").experiment_id])
    assert [p.step for p in client.get_metric_history(found.info.run_id, "5_health/loss")] == [0, 1]


STATE = LearnerState(0, (Weights(1, np.zeros(4, np.uint8), 0),), None, {})


def damage(folder, how):
    tensors, facts = folder / checkpoint.TENSORS, folder / checkpoint.FACTS
    if how == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif how == "tampered":
        held = {name: tensor.copy() for name, tensor in safetensors.numpy.load_file(tensors).items()}
        next(iter(held.values())).view(np.uint8)[0] ^= 1
        safetensors.numpy.save_file(held, tensors)
    elif how == "edited":
        facts.write_text(facts.read_text().replace('"updates": 2', '"updates": 3'))
    elif how == "foreign":
        facts.write_text('{"epoch": 3}')
    else:
        facts.unlink()


@pytest.mark.parametrize("how", ["truncated", "tampered", "edited", "foreign", "incomplete"])
def test_a_bad_checkpoint_is_refused_and_the_one_before_used(small, tmp_path, how, caplog):
    config = small(2)
    whole = train(config, local=True)
    folder = tmp_path / "run" / "checkpoints"
    damage(folder / "000002", how)
    with pytest.raises(UserError, match="checkpoint: .*000002"):
        checkpoint.load(folder / "000002")
    assert checkpoint.newest(tmp_path / "run").state.iteration == 1
    assert "trying the one before" in caplog.text
    assert train(resumed(config), local=True).weights_sha256 == whole.weights_sha256
    for each in folder.glob("0*"):
        damage(each, "foreign")
    with pytest.raises(UserError, match="no earlier one is good"):
        checkpoint.newest(tmp_path / "run")


def test_what_the_pointer_has_not_reached_does_not_count(small, tmp_path):
    train(small(2), local=True)
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder / "000001", folder / "000009")
    assert checkpoint.newest(tmp_path / "run").folder.name == "000002"
    (folder / checkpoint.POINTER).write_text('{"latest": "000001"}')
    assert checkpoint.newest(tmp_path / "run").folder.name == "000001"
    (folder / checkpoint.POINTER).write_text('{"late')
    assert checkpoint.newest(tmp_path / "run").folder.name == "000009", "without a pointer all of them count"


SIGNED = {
    "iteration": "three",
    "updates": 1.5,
    "variances": {"safe": ["x"]},
    "metrics": [1],
    "config": ["x"],
    "tensors_sha256": None,
}


@pytest.mark.parametrize("field", [*SIGNED, "nothing", "all"])
def test_a_signed_checkpoint_of_wrong_types_is_refused(small, tmp_path, field):
    folder = checkpoint.save(tmp_path / "run", STATE, small(1), {})
    facts = json.loads((folder / checkpoint.FACTS).read_text())
    del facts["facts_sha256"]
    if field in SIGNED:
        facts[field] = SIGNED[field]
    facts = {"nothing": {}, "all": [facts]}.get(field, facts)
    signed = facts | {"facts_sha256": checkpoint._digest(facts)} if isinstance(facts, dict) else facts
    (folder / checkpoint.FACTS).write_text(json.dumps(signed))
    with pytest.raises(UserError, match=r"checkpoint: .*000001"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("updates", "tensors"),
    [
        (0, {"weights/1": np.zeros(4, np.float32)}),
        (0, {"weights/1": np.zeros(4, np.uint8), "weights/x": np.zeros(4, np.uint8)}),
        (1, {"weights/1": np.zeros(4, np.uint8)}),
        (1, {"weights/1": np.zeros(4, np.uint8), **dict.fromkeys(Moments._fields, np.zeros(1, np.float64))}),
        (1, {"weights/1": np.zeros(4, np.uint8), **dict.fromkeys(Moments._fields, np.zeros(2, np.float32))}),
        (0, {"weights/2": np.zeros(4, np.uint8)}),
        (0, {f"weights/{version}": np.zeros(4, np.uint8) for version in (1, 2)}),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(small, tmp_path, updates, tensors):
    folder = checkpoint.save(tmp_path / "run", STATE, small(1), {})
    safetensors.numpy.save_file(tensors, folder / checkpoint.TENSORS)
    facts = json.loads((folder / checkpoint.FACTS).read_text())
    del facts["facts_sha256"]
    facts |= {"updates": updates, "tensors_sha256": file_sha256(folder / checkpoint.TENSORS)}
    (folder / checkpoint.FACTS).write_text(json.dumps(facts | {"facts_sha256": checkpoint._digest(facts)}))
    with pytest.raises(UserError, match=r"checkpoint: .*000001"):
        checkpoint.load(folder)


def test_weights_of_another_model_are_refused(small, tmp_path):
    config = small(2)
    checkpoint.save(tmp_path / "run", STATE, config, {})
    with pytest.raises(UserError, match="checkpoint: weights of 4 bytes do not fit"):
        train(resumed(config), local=True)


def test_another_config_is_named_field_by_field(small, tmp_path, capsys):
    config = small(1)
    train(config, local=True)
    learner = config.learner.model_dump() | {"learning_rate": 2e-3}
    train(resumed(config, iterations=2, learner=learner, rollout={"group_size": 3, "workers": 2}), local=True)
    said = capsys.readouterr().out
    assert "resume: iterations: 1 -> 2 (changes the result" in said
    assert "resume: rollout.workers: 1 -> 2 (does not change the result)" in said
    assert said.count("resume: ") == 3, "nothing else differs"
    assert "resume: learner.learning_rate: 0.001 -> 0.002 (changes the result" in said
    policy = config.policy.model_dump(mode="json") | {"lora": {"rank": 3}}
    with pytest.raises(UserError, match="policy.lora.rank"):
        train(resumed(config, policy=policy), local=True)


def test_an_unfinished_run_is_not_overwritten(small, tmp_path):
    config = small(1)
    train(config, local=True)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="unfinished run"):
        train(config, local=True)


def test_one_process_trains_in_a_folder(small, tmp_path):
    config = small(1)
    with held(config), pytest.raises(UserError, match="another process trains there"):
        train(config, local=True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    train(config, local=True)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(small, tmp_path, monkeypatch):
    write = safetensors.numpy.save_file

    def full(tensors, path):
        if "weights/1" not in tensors:
            path.write_bytes(b"half of it")
            # What safetensors raises on a full tmpfs: no OSError.
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        write(tensors, path)

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(TrainingError, match="No space left"):
        train(small(4), local=True)
    assert checkpoint.newest(tmp_path / "run").state.iteration == 1


def test_a_disk_that_is_full_for_the_record_is_explained(small, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(handle):
        if os.path.realpath(f"/proc/self/fd/{handle}").endswith("metrics.jsonl"):
            calls.append(handle)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="no room on its disk .*--resume"):
        train(small(4), local=True)
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path / "run").state.iteration == 2
    train(resumed(small(4)), local=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("updates", [0, 3])
def test_a_state_is_read_as_it_was_written(small, tmp_path, updates):
    rng = np.random.default_rng(0)
    weights = tuple(
        Weights(version, buffer, checksum(buffer))
        for version, buffer in ((n, rng.integers(0, 256, 8, np.uint8)) for n in (9, 10))
    )
    moments = Moments(*rng.normal(size=(2, 2)).astype(np.float32)) if updates else None
    variances = {"safe": (0.1, 0.2), None: (0.3,)}
    folder = checkpoint.save(
        tmp_path / "run", LearnerState(updates, weights, moments, variances), small(1), {}
    )
    found = checkpoint.load(folder).state
    assert (found.updates, found.iteration, found.variances) == (updates, 10, variances)
    for there, here in zip(found.weights, weights, strict=True):
        assert (there.version, there.checksum) == (here.version, here.checksum)
        assert np.array_equal(there.buffer, here.buffer)
    assert (found.moments is None) == (moments is None)
    for there, here in zip(found.moments or (), moments or (), strict=True):
        assert np.array_equal(there, here)


def test_learner_state_restores_every_bit(small):
    learner = Learner(small())
    learner.weights(0)
    state = learner.state(0)
    other = Learner(small(learner={"learning_rate": 0.5}))
    other.restore(state)
    assert np.array_equal(other.weights(0).buffer, state.current.buffer)


def test_sigterm_says_what_goes_on(small, tmp_path):
    def stop(config):
        with _sigterm(config.run, SimpleNamespace(flush=lambda timeout: True)):
            os.kill(os.getpid(), signal.SIGTERM)
            raise_if_stopped()

    config = small()
    with pytest.raises(Terminated, match="no iteration was saved yet"):
        stop(config)
    (tmp_path / "run" / "checkpoints" / "000001").mkdir(parents=True)
    with pytest.raises(Terminated, match=f"go on with --resume {tmp_path / 'run'}"):
        stop(config)
    with pytest.raises(Terminated, match="the same command goes on"):
        stop(resumed(config))


def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(small, tmp_path):
    config = small(200)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    process = subprocess.Popen(
        [sys.executable, "-m", "sdr1", "train", str(path), "--local"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("2/200"):
            break
    os.kill(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143
    assert f"the newest checkpoint is on disk: go on with --resume {tmp_path / 'run'}" in error
    assert checkpoint.newest(tmp_path / "run").state.iteration >= 2
