"""What a run leaves in MLflow and in its folder."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlflow
import mlflow.diffusers
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import sdr1
from sdr1.base.records import GroupTask, Prompt
from sdr1.models.pipeline import load_pipeline
from sdr1.training.observers.journal import Journal
from sdr1.training.observers.tracking import tracker as observer
from sdr1.training.observers.tracking.tracker import Tracker
from sdr1.training.run import train


def test_a_run_is_tracked(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = small(iterations=2, tracking={"enabled": True, "images_every": 1, "register": "safer"})
    result = train(config, local=True)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("sdr1")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == tmp_path.name, "a folder called run is named by the one that holds it"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    assert "MLFLOW_TRACKING_URI" not in os.environ, "the next run in this process chooses its own store"
    assert run.data.params["rollout.group_size"] == "3"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "1_safety/unsafe_rate")] == [0, 1]
    assert run.data.metrics["5_health/ratio_gap"] < 1e-5
    assert {"2_reward/reward_safe", "4_speed/images_per_second"} <= run.data.metrics.keys()
    tags = run.data.tags
    assert {
        "sdr1.objective": "grpo",
        "sdr1.base_model": "sandbox",
        "sdr1.trainable": "lora",
    }.items() <= tags.items()
    assert tags["sdr1.version"] == sdr1.__version__
    assert tags["sdr1.weights_sha256"] == result.weights_sha256
    assert tags["mlflow.note.content"] == f"`{tags['sdr1.command']}`"
    assert tags["sdr1.command"].split()[0] == "sdr1"
    (prompts,) = run.inputs.dataset_inputs
    assert (prompts.dataset.name, len(prompts.dataset.digest)) == ("prompts", 16)
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "summary.json", "images"} <= artifacts
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    history = client.get_metric_history(run.info.run_id, "2_reward/reward_safe")
    assert [row["reward_safe"] for row in rows] == pytest.approx([m.value for m in history])
    # The registered model draws what the run's own pipeline draws.
    (version,) = client.search_model_versions("name = 'safer'")
    assert version.run_id == run.info.run_id
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", store)
    model = mlflow.pyfunc.load_model(version.source)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "seed": 5}
    (_, second) = model.predict(pd.DataFrame({"prompt": ["a red circle", "a blue square"]}), params=options)
    pipeline = load_pipeline(str(result.model))
    noise = torch.Generator().manual_seed(6)
    (drawn,) = pipeline("a blue square", num_inference_steps=2, guidance_scale=3.0, generator=noise).images
    difference = np.asarray(drawn, int) - np.asarray(Image.open(io.BytesIO(second)), int)
    assert np.abs(difference).max() <= 2


def test_a_lora_adapter_is_a_model_that_mlflow_loads(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    policy = {"trainable": "lora", "lora": {"rank": 4, "alpha": 16}}
    config = small(iterations=1, policy=policy, tracking={"enabled": True})
    result = train(config, local=True)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    (experiment,) = [e for e in client.search_experiments() if e.name == "sdr1"]
    (model,) = (
        each for each in client.search_logged_models([experiment.experiment_id]) if each.name == "lora"
    )
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
    assert [point.step for point in client.get_metric_history(run.info.run_id, "5_health/loss")] == [0, 1, 2]


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
    monkeypatch.setattr(observer, "time", SimpleNamespace(sleep=lambda seconds: None))
    experiment = "" if what == "experiment" else "sdr1"
    config = small(1, tracking={"enabled": True, "experiment": experiment, "wait_seconds": 130})
    (tmp_path / "run").mkdir()
    with Journal(config) as journal, Tracker(config, journal) as tracker:
        tracker.accumulated(None)
        # MLflow's import alone takes half a minute on a busy machine.
        tracker._thread.join(120)
        assert not tracker._thread.is_alive()
    said = next(message for message in caplog.messages if message.startswith("MLflow refuses this run: "))
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


def test_what_a_run_leaves_is_told_of_the_weights_that_it_leaves(small, monkeypatch):
    """The last evaluation may be of others: of the iteration that a rule stopped at, not of the best."""
    journal = Journal(small(9))
    journal.rows = [
        {
            "iteration": 0,
            "loss": 1.0,
            "eval/iteration": 0.0,
            "eval/unsafe_trained": 0.875,
            "eval/shape_kept": 0.5,
        },
        {
            "iteration": 4,
            "loss": 1.0,
            "eval/iteration": 3.0,
            "eval/unsafe_trained": 0.25,
            "eval/shape_kept": 1.0,
        },
        {
            "iteration": 5,
            "loss": 1.0,
            "eval/iteration": 5.0,
            "eval/unsafe_trained": 0.5,
            "eval/shape_kept": 1.0,
        },
    ]
    told = []
    monkeypatch.setattr(observer, "tell", lambda client, *outcome: told.append(outcome))
    tracker = Tracker(small(9), journal)
    tracker._mlflow, tracker._run_id = SimpleNamespace(MlflowClient=lambda: None), "run"
    for iteration in (3, 4):
        tracker._tell_outcome(iteration)
    before, after = {"unsafe_trained": 0.875, "shape_kept": 0.5}, {"unsafe_trained": 0.25, "shape_kept": 1.0}
    assert told == [("run", before, after, "unsafe_trained 87.5% to 25.0%")], (
        "nothing was measured of iteration 4"
    )


def test_a_finished_run_that_is_only_resumed_leaves_no_second_model(small, monkeypatch):
    tags, logged = {}, []
    client = SimpleNamespace(
        get_run=lambda run_id: SimpleNamespace(data=SimpleNamespace(tags=tags)),
        set_tag=lambda run_id, key, value: tags.update({key: value}),
    )
    tracker = Tracker(small(1), Journal(small(1)))
    tracker._mlflow, tracker._run_id = SimpleNamespace(MlflowClient=lambda: client), "run"
    monkeypatch.setattr(observer, "log_pipeline", lambda config, model: logged.append(model))
    for digest in ("ab", "ab", "cd"):
        tracker._log_model(Path("model"), digest)
    assert len(logged) == 2
