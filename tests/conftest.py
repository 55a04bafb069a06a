"""Fixtures shared by the tests: small configs and the pieces of one group."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import ray
import torch

from sdr1.base.process import prepare_process
from sdr1.config.training import Config, validate
from sdr1.planning import plan as planning

# How long an example takes says how busy the machine is; a first one may also import torch.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


# Before xdist's own, which reads the mark.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One test process runs all tests that start clusters: several clusters starve each other on two cores.

    Those that share a cluster come one after the other. Tests that share a fixture of their module go to one process too, and
    so do those that share a plan: each process would make it for itself.
    """
    items.sort(key=shares)
    for item in items:
        if {"distributed", "on_ray"} & set(item.path.parts) or shares(item):
            item.add_marker(pytest.mark.xdist_group("cluster"))
        elif uses(item, "planned_once"):
            item.add_marker(pytest.mark.xdist_group("plans"))
        elif of_a_module(item):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


def of_a_module(item: pytest.Item) -> bool:
    """Whether one of a test's fixtures is made once for its module."""
    assert isinstance(item, pytest.Function)
    known = item._fixtureinfo.name2fixturedefs.values()
    return any(fixture.scope == "module" for definitions in known for fixture in definitions)


def shares(item: pytest.Item | None) -> bool:
    return uses(item, "shared_ray")


def uses(item: pytest.Item | None, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


# After pytest's own, which ends the test's fixtures.
@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if shares(item) and not shares(nextitem):
        ray.shutdown()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    prepare_process(1)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws from torch's own generator does not hang on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def shared_ray() -> Iterator[None]:
    """A Ray cluster of this machine, which trainings and evaluations of the test take; the next test finds it as empty."""
    if not ray.is_initialized():
        ray.init(
            address="local", num_cpus=5, include_dashboard=False, log_to_driver=False,
            _system_config={"metrics_report_interval_ms": 500},
        )  # fmt: skip
    yield
    # Actors end with the last reference to them.
    gc.collect()
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 5:
        if time.monotonic() > end:
            ray.shutdown()
            break
        time.sleep(0.1)


@pytest.fixture(scope="session")
def _plans() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def planned_once(_plans: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first plan that is made serves all such tests, whose configs plan the same: one takes ten seconds."""
    make = planning.plan

    def plan(config: Config) -> dict[str, Any]:
        if not _plans:
            _plans.append(make(config))
        return _plans[0]

    monkeypatch.setattr(planning, "plan", plan)


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """Builds a config of a few images; keyword arguments replace fields of its sections."""

    def make(iterations: int = 1, **sections: dict[str, Any]) -> Config:
        values: dict[str, dict[str, Any]] = {
            "run": {"directory": str(tmp_path / "run")},
            "policy": {"trainable": "lora", "steps": 3, "guidance_scale": 2, "noise_window": [0, 2]},
            "prompts": {"per_iteration": 2, "unsafe_share": 0.5},
            "rollout": {"group_size": 3},
            "reward": {"alpha": 1.5, "anchors": "sandbox", "monitor": "oracle"},
            "learner": {"learning_rate": 1e-3, "kl_weight": 1.0, "kl_on": "safe", "micro_batch": 4},
            "tracking": {"enabled": False},
        }
        for name, fields in sections.items():
            values[name] = {**values.get(name, {}), **fields}
        return validate({"iterations": iterations, **values})

    return make
