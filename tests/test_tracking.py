"""What a run leaves in MLflow and in its folder."""

from __future__ import annotations

import json
import os

import mlflow
import mlflow.diffusers
import numpy as np
import pytest
import torch

from sdr1.policy import load_pipeline
from sdr1.tracking import Tracker, attach
from sdr1.train import train


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
    assert [m.step for m in client.get_metric_history(run.info.run_id, "unsafe_rate")] == [0, 1]
    assert run.data.metrics["ratio_gap/step_0"] < 1e-5
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "summary.json", "model", "images"} <= artifacts
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    history = client.get_metric_history(run.info.run_id, "reward_safe")
    assert [row["reward_safe"] for row in rows] == pytest.approx([m.value for m in history])
    assert (result.model / "unet").is_dir()


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
