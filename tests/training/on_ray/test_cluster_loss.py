"""The whole cluster goes under a live driver, which ends and says so; the next cluster takes the run to the same bits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ray.cluster_utils import Cluster

from sdr1.base.files import write_text
from sdr1.training.run import train

pytestmark = pytest.mark.slow


@pytest.fixture
def start(monkeypatch):
    """Makes clusters, all gone at the end."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made: list[Cluster] = []

    def make() -> Cluster:
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False}))
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()


def drive(path, cluster: Cluster) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sdr1", "train", str(path), "--ray-address", cluster.address, "run.resume=auto"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_driver_outlives_no_cluster_and_the_next_one_resumes(start, small, tmp_path):
    whole = train(small(6, run={"directory": str(tmp_path / "whole")}), local=True)
    config, path = small(6), tmp_path / "config.yaml"
    write_text(path, json.dumps(config.model_dump(mode="json")))
    cluster = start()
    driver = drive(path, cluster)
    for line in driver.stdout:
        if line.startswith("2/6"):
            break
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    # Ray gives a cluster 60 seconds to come back.
    _, error = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "GCS" in error
    driver = drive(path, start())
    output, error = driver.communicate(timeout=180)
    assert driver.returncode == 0, error
    assert f"weights_sha256={whole.weights_sha256}" in output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(6))
