"""Operator's metrics as Prometheus gets them, and the dashboard that reads them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from sdr1.training import loop
from sdr1.training.on_ray.executor import RayExecutor
from sdr1.training.on_ray.meters import GAUGES, RECOVERIES

DASHBOARD = Path(__file__).parents[3] / "cluster" / "grafana-dashboard.json"


@pytest.fixture
def port() -> Iterator[int]:
    ray.init(
        address="local", num_cpus=3, include_dashboard=False, log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 500},
    )  # fmt: skip
    yield ray.nodes()[0]["MetricsExportPort"]
    ray.shutdown()


def exported(port: int) -> dict[str, list[dict[str, str]]]:
    """What is scraped: the tags of every sample of ours, by name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[dict[str, str]]] = {}
    for name, tags in re.findall(r"^(ray_sdr1_\w+)\{(.*)\} ", text, re.MULTILINE):
        found.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', tags)))
    return found


def queries() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return asked + [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]


def test_the_dashboard_asks_for_every_metric_and_for_no_other() -> None:
    asked = {name for query in queries() for name in re.findall(r"ray_(sdr1_[a-z_]+)", query)}
    assert asked == {*GAUGES, f"{RECOVERIES}_total"}
    for query in queries():
        for name, tags in re.findall(r"ray_(sdr1_[a-z_]+)\{([^}]*)\}", query):
            known = {"run", *GAUGES.get(name, ("", ("cause",)))[1]}
            assert set(re.findall(r"(\w+)[=!]", tags)) <= known, query


def test_a_run_exports_what_the_dashboard_asks_for(port: int, small: Any) -> None:
    from sdr1.prompts import stream as prompts
    from sdr1.training.checkpoint import save

    config = small(2)
    executor = RayExecutor(config)
    killed = []

    class Watch:
        """One rollout worker is killed; a checkpoint is written, which the meters look for rarely."""

        def accumulated(self, task: Any) -> None:
            if not killed:
                killed.append(True)
                ray.kill(next(iter(executor._rollouts._workers)).actor)

        def iteration(self, iteration: int, metrics: Any, tasks: Any, executor: Any) -> None:
            if iteration == 0:
                save(config.run.directory, executor.snapshot(1)(), config, {})
                executor._meters._looked = float("-inf")

    loop.run(config, prompts.load(config), executor, [Watch()])
    wanted = {f"ray_{name}" for name in GAUGES} | {f"ray_{RECOVERIES}_total"}
    end = time.monotonic() + 60
    while not wanted <= (found := exported(port)).keys() and time.monotonic() < end:
        time.sleep(0.5)
    assert wanted - found.keys() == set()
    assert {tags["run"] for tags in found["ray_sdr1_images_per_second"]} == {"run"}
    assert {tags["role"] for tags in found["ray_sdr1_busy_share"]} == {"rollout", "reward", "learner"}
    assert {tags["cause"] for tags in found[f"ray_{RECOVERIES}_total"]} == {"rollout"}
