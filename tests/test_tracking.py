"""What a run leaves in MLflow and in its folder."""

from __future__ import annotations

import json
import os

import mlflow
import pytest

from sdr1.train import train


def test_a_run_is_tracked(small, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = small(iterations=2, tracking={"enabled": True, "images_every": 1})
    result = train(config, local=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sdr1")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
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
