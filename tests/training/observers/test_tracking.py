"""What a run leaves in MLflow and in its folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import mlflow
import mlflow.diffusers
import numpy as np
import pytest
import torch

from sdr1.base.records import GroupTask, Prompt
from sdr1.models.pipeline import load_pipeline
from sdr1.training.observers import tracking
from sdr1.training.observers.journal import Journal
from sdr1.training.observers.tracking import Tracker, attach, conclude
from sdr1.training.run import train


def test_a_run_is_tracked(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = small(iterations=2, tracking={"enabled": True, "images_every": 1})
    result = train(config, local=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sdr1")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == tmp_path.name, "a folder called run is named by the one that holds it"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    assert "MLFLOW_TRACKING_URI" not in os.environ, "the next run in this process chooses its own store"
    assert run.data.params["rollout.group_size"] == "3"
    tags = run.data.tags
    assert (tags["sdr1.base_model"], tags["sdr1.trainable"]) == ("sandbox", "lora")
    assert tags["sdr1.version"] == importlib.metadata.version("sdr1")
    assert tags["mlflow.note.content"].startswith("`sdr1 "), "the command that made it"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "unsafe_rate")] == [0, 1]
    assert run.data.metrics["ratio_gap/step_0"] < 1e-5
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "summary.json", "model", "images"} <= artifacts
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    history = client.get_metric_history(run.info.run_id, "reward_safe")
    assert [row["reward_safe"] for row in rows] == pytest.approx([m.value for m in history])
    assert (result.model / "unet").is_dir()


def test_the_outcome_of_a_run_can_be_sorted_by_and_is_told_first(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("sdr1")
    runs = [client.create_run(experiment, tags={"mlflow.note.content": "`sdr1 train`"}) for _ in range(2)]
    before = {"unsafe_trained": 0.8, "utility/overall": 0.75}
    for run, rate in zip(runs, (0.5, 0.25), strict=True):
        (tmp_path / f"{rate}").mkdir()
        (tmp_path / f"{rate}" / "run.json").write_text(json.dumps({"mlflow_run_id": run.info.run_id}))
        after = {"unsafe_trained": rate, "utility/overall": 0.5}
        for _ in range(2):
            assert conclude(tmp_path / f"{rate}", before, after, f"trained {rate}")
    found = client.search_runs(
        [experiment],
        "metrics.`outcome/change/unsafe_trained` < 0",
        order_by=["metrics.`outcome/after/unsafe_trained`"],
    )
    assert [run.info.run_id for run in found] == [run.info.run_id for run in reversed(runs)]
    assert found[0].data.metrics == {
        "outcome/before/unsafe_trained": 0.8, "outcome/before/utility/overall": 0.75,
        "outcome/after/unsafe_trained": 0.25, "outcome/after/utility/overall": 0.5,
        "outcome/change/unsafe_trained": pytest.approx(-0.55), "outcome/change/utility/overall": -0.25,
    }  # fmt: skip
    assert found[0].data.tags["mlflow.note.content"] == "**trained 0.25**\n\n`sdr1 train`"
    assert not conclude(tmp_path, before, after, ""), "no run of MLflow's"


def test_a_lora_adapter_is_a_model_that_mlflow_loads(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    policy = {"trainable": "lora", "lora": {"rank": 4, "alpha": 16}}
    config = small(iterations=1, policy=policy, tracking={"enabled": True})
    result = train(config, local=True)
    sheet = tmp_path / "before_after.png"
    sheet.write_bytes(b"picture")
    assert attach(config.run.directory, [sheet], tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    (experiment,) = [e for e in client.search_experiments() if e.name == "sdr1"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert "before_after.png" in {file.path for file in client.list_artifacts(run.info.run_id)}
    (model,) = client.search_logged_models([experiment.experiment_id])
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", store)
    adapted = mlflow.diffusers.load_model(model.model_uri).load_pipeline()

    def draw(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        return pipeline("a red circle", num_inference_steps=2, generator=noise, output_type="np").images

    merged, base = draw(load_pipeline(str(result.model))), draw(load_pipeline("sandbox"))
    assert draw(adapted) == pytest.approx(merged, abs=1e-4)
    assert np.abs(merged - base).max() > 1e-3


def test_a_server_that_goes_and_comes_back_gets_every_step_once_and_in_order(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    begin, send, sent = Tracker._begin, Tracker._send, []
    away = {"begin": 1, "step 1": 1}

    def refuse(what: str) -> None:
        if away.get(what, 0):
            away[what] -= 1
            raise ConnectionError("connection refused")

    def unsteady_begin(self):
        refuse("begin")
        return begin(self)

    def unsteady_send(self, row):
        refuse(f"step {row['iteration']}")
        send(self, row)
        sent.append(row["iteration"])

    monkeypatch.setattr(Tracker, "_begin", unsteady_begin)
    monkeypatch.setattr(Tracker, "_send", unsteady_send)
    train(small(iterations=3, tracking={"enabled": True}), local=True)
    assert not any(away.values()), "it was away twice"
    assert sent == [0, 1, 2]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("sdr1").experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2]


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"who are you")

    do_POST = do_GET

    def log_message(self, *given):
        pass


@pytest.fixture
def refusing_server():
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("what", ["scheme", "login", "experiment"])
def test_what_mlflow_refuses_is_not_asked_for_ever(
    small, tmp_path, monkeypatch, caplog, what, refusing_server
):
    address = {"scheme": "htp://x", "login": refusing_server}
    if what in address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address[what])
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Not time.sleep itself: other threads of this process would spin.
    monkeypatch.setattr(tracking, "time", SimpleNamespace(sleep=lambda seconds: None))
    experiment = "" if what == "experiment" else "sdr1"
    config = small(1, tracking={"enabled": True, "experiment": experiment, "wait_seconds": 50})
    (tmp_path / "run").mkdir()
    with Journal(config) as journal, Tracker(config, journal) as tracker:
        tracker.accumulated(None)
        tracker._thread.join(40)
        assert not tracker._thread.is_alive()
    said = caplog.messages[-1]
    assert said.startswith("MLflow refuses this run: ")
    assert "log in, or change MLFLOW_TRACKING_URI or tracking.experiment" in said
    assert "--resume" not in "".join(caplog.messages)
    assert sum("trying again" in message for message in caplog.messages) == 2


def test_a_step_is_sent_when_its_pictures_are_there(small, tmp_path, monkeypatch):
    config = small(1, tracking={"enabled": True, "images_every": 1})
    sent = []
    monkeypatch.setattr(Tracker, "_begin", lambda self: 0)
    monkeypatch.setattr(
        Tracker, "_send", lambda self, row: sent.append(self._sample(row["iteration"], "safe").is_file())
    )
    drawn = threading.Event()

    def images(task):
        # Longer than the other thread needs to see a new row.
        tracker._wake.set()
        time.sleep(0.3)
        drawn.set()
        return np.zeros((2, 8, 8, 3), np.uint8)

    (tmp_path / "run").mkdir()
    task = GroupTask(0, 0, 0, Prompt("a red circle", "safe"), 0)
    with Journal(config) as journal:
        tracker = Tracker(config, journal)
        tracker._mlflow = SimpleNamespace(end_run=lambda status: None)
        with tracker:
            tracker.accumulated(task)
            journal.subscribe(tracker)
            journal.iteration(0, {}, [task], SimpleNamespace(images=images))
    assert sent == [True]
    assert drawn.is_set()
