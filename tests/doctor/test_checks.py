"""A healthy ground has nothing to mend; in each broken one exactly the broken thing is named, in one line, with a fix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdr1.config.training import Config, validate
from sdr1.doctor import machine
from sdr1.doctor.checks import CHECKS
from sdr1.doctor.findings import Finding, as_json, judge, lines
from sdr1.doctor.ground import Ground, NodeGround
from sdr1.doctor.machine import Machine

GB = 10**9
HEALTHY = Machine(
    versions=machine._versions(), memory=64 * GB, gpus=(80 * GB,), shm=16 * GB, open_files=65536, processes=65536,
    written=5e8,
)  # fmt: skip
RESOURCES = {"CPU": 8.0, "GPU": 1.0, "object_store_memory": 10.0 * GB}
PLAN: dict[str, Any] = {
    "memory": {
        "rollout": {"device": "cuda", "actors": 2, "total": 20 * GB},
        "reward": {"device": "cpu", "actors": 1, "total": 5 * GB},
        "learner": {"device": "cuda", "actors": 1, "total": 40 * GB},
    },
    "bytes_per_iteration": {
        "weights_published": GB, "trajectories": GB, "reference_means": 0, "images": 10**8,
    },
}  # fmt: skip


def config_of(**sections: Any) -> Config:
    values: dict[str, Any] = {
        "learner": {"device": "cuda"},
        "rollout": {"device": "cuda", "workers": {"min": 2, "max": 8}},
        "run": {"directory": "/shared/outputs/run"},
    }
    return validate({name: values.get(name, {}) | sections.get(name, {}) for name in {**values, **sections}})


def ground_of(**changes: Any) -> Ground:
    """Three nodes of one GPU each, the driver outside."""
    nodes = {f"10.0.0.{n}": NodeGround(RESOURCES, HEALTHY, pulled=0.2) for n in (1, 2, 3)}
    healthy = Ground(
        config_of(), PLAN, replace(HEALTHY, gpus=()), nodes, joins=True, pulled=256 * 2**20, free=500 * GB,
        tracking="https://mlflow takes runs and files",
    )  # fmt: skip
    return replace(healthy, **changes)


def with_node(**changes: Any) -> Ground:
    """The second node is another machine than the others."""
    ground = ground_of()
    node = ground.nodes["10.0.0.2"]
    assert node.machine is not None
    facts = {name: value for name, value in changes.items() if hasattr(node.machine, name)}
    others = {name: value for name, value in changes.items() if name not in facts}
    broken = replace(node, machine=replace(node.machine, **facts), **others)
    return replace(ground, nodes={**ground.nodes, "10.0.0.2": broken})


def planned(**changes: Any) -> dict[str, Any]:
    return {**PLAN, **{name: {**PLAN[name], **value} for name, value in changes.items()}}


BROKEN = {
    "another ray on a node": (
        with_node(versions={**HEALTHY.versions, "ray": "2.52.0"}),
        "versions", "10.0.0.2: ray 2.52.0; the driver has ray ",
    ),
    "a package missing on a node": (
        with_node(versions={**HEALTHY.versions, "peft": "missing"}), "versions", "10.0.0.2: peft missing",
    ),
    "nobody at the address": (
        ground_of(nodes={}, problems={"ray": "--ray-address: '10.0.0.9:6379': no cluster; start one"}),
        "ray", "--ray-address: '10.0.0.9:6379': no cluster",
    ),
    "a node that does not answer": (
        replace(ground_of(), nodes={**ground_of().nodes, "10.0.0.4": NodeGround({}, None, "no answer for 120 s")}),
        "ray", "10.0.0.4: no answer for 120 s",
    ),
    "no token": (ground_of(token=False), "token", "anybody who reaches the cluster's ports runs code there"),
    "too few GPUs": (
        ground_of(config=config_of(rollout={"workers": 4})), "processors", "the config needs 5 GPUs, Ray offers 3",
    ),
    "too few CPUs": (
        ground_of(config=config_of(run={"threads": 12})), "processors", "the config needs 36 CPUs, Ray offers 24",
    ),
    "a GPU without its driver": (
        with_node(gpus=()), "processors", "10.0.0.2: Ray offers 1 GPUs, torch sees 0",
    ),
    "a GPU too small": (
        with_node(gpus=(24 * GB,)), "memory", "10.0.0.2: learner needs 40 GB of a GPU that has 24 GB",
    ),
    "no node with enough RAM": (
        ground_of(plan=planned(memory={"reward": {"device": "cpu", "actors": 1, "total": 70 * GB}})),
        "memory", "reward needs 70 GB, the largest node has 64 GB",
    ),
    "too little RAM in all": (
        ground_of(
            config=config_of(reward={"workers": 4}),
            plan=planned(memory={"reward": {"device": "cpu", "actors": 4, "total": 60 * GB}}),
        ),
        "memory", "the actors need 240 GB, all nodes have 192 GB",
    ),
    "a folder of the driver's own": (
        with_node(folder="what the driver writes there is not seen here"),
        "folder", "run.directory: /shared/outputs/run: 10.0.0.2: what the driver writes there is not seen here",
    ),
    "a folder in Ray's copy": (
        ground_of(config=config_of(run={"directory": "/tmp/ray/working_dir_files/_ray_pkg_1/run"})),
        "folder", "run.directory: /tmp/ray/working_dir_files/_ray_pkg_1/run: lies in Ray's copy",
    ),
    "a disk too full": (
        ground_of(free=5 * GB), "folder", "run.directory: /shared/outputs/run: 5 GB free, checkpoints take 12 GB",
    ),
    "a disk too slow": (
        ground_of(driver=replace(HEALTHY, gpus=(), written=5e6)),
        "folder", "run.directory: /shared/outputs/run: 5 MB/s: a checkpoint takes 600 s",
    ),
    "models that one node lacks": (
        with_node(files="policy.model: '/models/sd': no such file or folder; give one"),
        "files", "10.0.0.2: policy.model: '/models/sd': no such file or folder",
    ),
    "a clock behind": (with_node(clock=-7.5), "clocks", "10.0.0.2: its clock is -7.5 s off the driver's"),
    "no MLflow": (
        ground_of(problems={"mlflow": "MLFLOW_TRACKING_URI: http://m: takes no run; start the server"}),
        "mlflow", "MLFLOW_TRACKING_URI: http://m: takes no run",
    ),
    "a thin line": (
        with_node(pulled=200.0), "broadcast", "10.0.0.2: 1.34 MB/s: weights of 1 GB take 745 s",
    ),
    "small object stores": (
        ground_of(
            nodes={n: replace(e, resources={**RESOURCES, "object_store_memory": 2.0 * GB}) for n, e in ground_of().nodes.items()}
        ),
        "store", "weights, two snapshots and an iteration take 9.1 GB, the largest object store has 2 GB",
    ),
    "a container's /dev/shm": (
        with_node(shm=64 * 2**20), "shm", "10.0.0.2: /dev/shm has 67.1 MB, its object store 10 GB",
    ),
    "few open files": (with_node(open_files=1024), "ulimits", "10.0.0.2: 1024 open files allowed"),
    "few processes": (
        ground_of(driver=replace(HEALTHY, gpus=(), processes=512)), "ulimits", "driver: 512 processes allowed",
    ),
    "a config that cannot be": (
        ground_of(config=None, plan=None, problems={"config": "learner.ranks: 0: too few; use 1"}),
        "config", "learner.ranks: 0: too few",
    ),
}  # fmt: skip


def test_nothing_is_to_be_mended_on_healthy_ground() -> None:
    found = judge(ground_of())
    assert [each for each in found if not each.fit] == []
    assert [each.check for each in found] == list(CHECKS), "one line a check"
    assert lines(found)[-1] == "fit"
    assert as_json(found)["fit"] is True


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_in_one_line_with_its_fix(name: str) -> None:
    ground, check, told = BROKEN[name]
    (wrong,) = [each for each in judge(ground) if not each.fit]
    assert wrong.check == check
    assert wrong.found.startswith(told)
    assert wrong.fix
    (line,) = [each for each in lines([wrong]) if each.startswith("FIX")]
    assert "\n" not in line
    assert line.endswith(wrong.fix)
    assert lines([wrong])[-1] == "1 to mend"
    assert as_json([wrong])["fit"] is False


def test_a_shared_gpu_holds_all_its_actors() -> None:
    config = config_of(run={"placement": "shared", "directory": "/shared/outputs/run"})
    fits = ground_of(config=config, plan={**PLAN, "memory_on_the_one_gpu": 60 * GB})
    assert all(each.fit for each in judge(fits))
    (wrong, *more) = [
        each for each in judge(replace(fits, plan={**PLAN, "memory_on_the_one_gpu": 75 * GB})) if not each.fit
    ]
    assert wrong.found == "10.0.0.1: all that share it needs 75 GB of a GPU that has 80 GB"
    assert len(more) == 2


def test_without_a_config_only_what_any_job_needs_is_looked_at() -> None:
    ground = Ground(None, None, HEALTHY, {"10.0.0.1": NodeGround(RESOURCES, HEALTHY, pulled=None)})
    found = judge(ground)
    assert all(each.fit for each in found)
    assert {each.check for each in found} == {
        "versions", "ray", "token", "clocks", "broadcast", "store", "shm", "ulimits",
    }  # fmt: skip


def test_bounds_of_the_packages_are_those_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.unmet() == []
    asked = ["numpy<2", "torch>=2.6", "nothing-of-that-name>=1", "nudenet<1 ; extra == 'evaluation'"]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: asked)
    wrong, missing = machine.unmet()
    assert wrong.startswith("numpy ")
    assert wrong.endswith(" is not <2")
    assert missing == "nothing-of-that-name is missing"
    (first, second) = [each for each in judge(ground_of()) if not each.fit]
    assert (first.check, first.found) == ("versions", f"driver: {wrong}")
    assert second.found == f"driver: {missing}"


def test_a_node_sees_what_the_driver_wrote_or_says_so(tmp_path: Path) -> None:
    assert machine.visit(None, tmp_path).written > 0
    assert machine.visit(None, tmp_path / "elsewhere").folder.startswith("what the driver writes there")


def test_a_line_is_one_line_whatever_was_found() -> None:
    (line, _) = lines([Finding("files", False, "a\nb   c", "d")])
    assert line == "FIX  files  a b c; d"
