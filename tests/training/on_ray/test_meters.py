"""Operator's metrics: their figures, what Prometheus gets of a run, and the dashboard that reads them."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.util import metrics

from benchmarks.suite.schedule import stubs
from sdr1.base.records import GroupTask, LearnerState, Prompt, UpdateReport, Usage, Weights
from sdr1.prompts import stream as prompts
from sdr1.training import checkpoint, loop
from sdr1.training.on_ray import meters as module
from sdr1.training.on_ray.executor import RayExecutor
from sdr1.training.on_ray.meters import GAUGES, RECOVERIES, Meters
from sdr1.training.on_ray.work import Group, State

DASHBOARD = Path(__file__).parents[3] / "cluster" / "grafana-dashboard.json"
TASK = GroupTask(0, 3, 0, Prompt("a red circle", "safe"), 2)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """What Ray was told, by name and tags; at a time that the test sets."""
    found: dict[tuple[str, ...], float] = {}

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._name, self._keys = name, set(tag_keys)

        def set_default_tags(self, tags: dict[str, str]) -> None:
            self._default = tags

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert {**tags, **self._default}.keys() == self._keys
            found[self._name, *tags.values()] = value

        def inc(self, value: float, tags: dict[str, str]) -> None:
            self.set(found.get((self._name, *tags.values()), 0) + value, tags)

    monkeypatch.setattr(module, "metrics", SimpleNamespace(Gauge=Metric, Counter=Metric))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_shares_are_of_the_iteration_and_of_all_workers(
    told: dict[tuple[str, ...], float], clock: SimpleNamespace, small: Any
) -> None:
    meters = Meters(small(rollout={"group_size": 4}))
    for _ in range(2):
        # The second iteration alone counts at its end.
        clock.now += 10
        report = SimpleNamespace(task=TASK, seconds=0.5)
        meters.stepped([report, report], UpdateReport(1, 0.5, 1e-3, seconds=1.0))
        meters.stepped([report], UpdateReport(2, 0.5, 1e-3, seconds=0.5))
        meters.used(Usage(rollout_seconds=15, reward_seconds=1, rollout_workers=3, reward_workers=1))
    assert told == {
        ("sdr1_busy_share", "rollout"): 15 / 3 / 10,
        ("sdr1_busy_share", "reward"): 0.1,
        ("sdr1_busy_share", "learner"): (3 * 0.5 + 1.5) / 10,
        ("sdr1_images_per_second",): 3 * 4 / 10,
        ("sdr1_staleness",): 1,
    }


def test_groups_queue_by_state_and_losses_are_counted_once(
    told: dict[tuple[str, ...], float], clock: SimpleNamespace, small: Any
) -> None:
    meters = Meters(small())
    groups = [Group(TASK, state) for state in (State.WAITING, State.WAITING, State.MADE, State.DONE)]
    rollouts = SimpleNamespace(in_service=2, losses=Counter(died=2, left=1))
    rewards = SimpleNamespace(in_service=1, losses=Counter())
    for _ in range(3):
        meters.tick(groups, {"rollout": rollouts, "reward": rewards})
        clock.now += 5
    meters.learner_lost()
    meters.learner_lost()
    states = {name: told["sdr1_groups", name] for name in ("waiting", "made", "scoring", "done")}
    assert states == {"waiting": 2, "made": 1, "scoring": 0, "done": 1}
    assert (told["sdr1_workers", "rollout"], told["sdr1_workers", "reward"]) == (2, 1)
    assert {key: value for key, value in told.items() if key[0] == RECOVERIES} == {
        (RECOVERIES, "rollout", "died"): 2,
        (RECOVERIES, "rollout", "left"): 1,
        (RECOVERIES, "learner", "lost"): 2,
    }
    rollouts.losses["died"] += 1
    meters.tick([], {"rollout": rollouts})
    assert told[RECOVERIES, "rollout", "died"] == 3
    assert told["sdr1_groups", "waiting"] == 0


def test_publishing_takes_until_the_confirmation_and_a_checkpoint_is_as_old_as_its_folder(
    told: dict[tuple[str, ...], float], clock: SimpleNamespace, small: Any
) -> None:
    config = small()
    meters = Meters(config)
    meters.published()
    clock.now += 3
    meters.confirmed()
    assert told["sdr1_publish_seconds",] == 3
    meters.tick([], {})
    assert ("sdr1_checkpoint_time_seconds",) not in told, "there is none"
    clock.now += 60
    state = LearnerState(0, (Weights(1, np.zeros(4, np.uint8), 0),), None, {})
    folder = checkpoint.save(config.run.directory, state, config, {})
    meters.tick([], {})
    assert told["sdr1_checkpoint_time_seconds",] == folder.stat().st_mtime


def test_every_gauge_is_sent_again_at_each_tick(
    told: dict[tuple[str, ...], float], clock: SimpleNamespace, small: Any
) -> None:
    config = small()
    meters = Meters(config)
    fleets = {role: SimpleNamespace(in_service=1, losses=Counter()) for role in ("rollout", "reward")}
    checkpoint.save(
        config.run.directory, LearnerState(0, (Weights(1, np.zeros(4, np.uint8), 0),), None, {}), config, {}
    )
    meters.published()
    clock.now += 2
    meters.confirmed()
    meters.stepped([SimpleNamespace(task=TASK, seconds=0.5)], UpdateReport(1, 0.5, 1e-3, seconds=1.0))
    meters.used(Usage(rollout_seconds=1, reward_seconds=1, rollout_workers=1, reward_workers=1))
    meters.tick([], fleets)
    before = dict(told)
    assert {name for name, *_ in before} == GAUGES.keys()
    told.clear()
    clock.now += 600
    meters.tick([], fleets)
    assert told == before


def queries() -> list[str]:
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return asked + [each["query"] for each in board["templating"]["list"] if each["type"] == "query"]


def test_the_dashboard_asks_for_every_metric_and_for_no_other_name_or_tag() -> None:
    asked = {name for query in queries() for name in re.findall(r"ray_(sdr1_[a-z_]+)", query)}
    assert asked == {*GAUGES, f"{RECOVERIES}_total"}
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"ray_(sdr1_[a-z_]+)", target["expr"])
            known = {"run", *(GAUGES[name][1] if name in GAUGES else ("role", "cause"))}
            used = re.findall(r"(\w+)(?==~|!=|=\")", target["expr"])
            used += [each for by in re.findall(r"by \(([^)]*)\)", target["expr"]) for each in by.split(", ")]
            used += re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            assert "run" in used
            assert set(used) <= known, target


@pytest.fixture
def port(shared_ray: None) -> int:
    port = ray.nodes()[0]["MetricsExportPort"]
    # What is sent before the node's agent listens is never seen.
    probe, end = metrics.Gauge("sdr1_probe", "", ("run",)), time.monotonic() + 60
    while "ray_sdr1_probe" not in exported(port) and time.monotonic() < end:
        probe.set(1.0, {"run": "probe"})
        time.sleep(0.2)
    return port


def exported(port: int) -> dict[str, list[dict[str, str]]]:
    """What is scraped: the tags of every sample of ours, by name; nothing where nobody listens yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return {}
    found: dict[str, list[dict[str, str]]] = {}
    for name, tags in re.findall(r"^(ray_sdr1_\w+)\{(.*)\} ", text, re.MULTILINE):
        found.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', tags)))
    return found


def test_a_run_exports_what_the_dashboard_asks_for(port: int, small: Any, tmp_path: Path) -> None:
    config = small(2)
    executor = RayExecutor(config, roles=stubs(0.02, 0.02))
    killed: list[bool] = []

    class Watch:
        """A rollout worker is killed; a checkpoint is written, which the meters look for rarely."""

        def accumulated(self, task: GroupTask) -> None:
            if not killed:
                killed.append(True)
                next(iter(executor._rollouts._workers)).actor.kill()

        def iteration(self, iteration: int, metrics: Any, tasks: Any, _: Any) -> None:
            if iteration == 0:
                checkpoint.save(config.run.directory, executor.snapshot(1)(), config, {})
                executor._meters._looked = float("-inf")

    loop.run(config, prompts.load(config), executor, [Watch()])
    end = time.monotonic() + 60
    # Ray's agent forgets a gauge some seconds after it came.
    while {f"ray_{name}" for name in GAUGES} & exported(port).keys() and time.monotonic() < end:
        time.sleep(0.5)
    wanted = {f"ray_{name}" for name in GAUGES} | {f"ray_{RECOVERIES}_total"}
    # While the driver waits for anything, one scrape sees all of them.
    while not wanted <= (found := exported(port)).keys() and time.monotonic() < end:
        executor._wait()
    assert wanted - found.keys() == set()
    assert {tags["run"] for tags in found["ray_sdr1_images_per_second"]} == {tmp_path.name}
    assert {tags["role"] for tags in found["ray_sdr1_busy_share"]} == {"rollout", "reward", "learner"}
    # Other runs on this cluster have counted too.
    ours = [tags for tags in found[f"ray_{RECOVERIES}_total"] if tags["run"] == tmp_path.name]
    lost = {(tags["role"], tags["cause"]) for tags in ours}
    assert lost == {("rollout", "died")}
