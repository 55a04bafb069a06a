"""The fleet on a real, small Ray cluster with stub workers: growing, replacing, refusing to go on."""

from __future__ import annotations

import os
import signal
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from sdr1.config import Elastic
from sdr1.distributed.calls import Calls
from sdr1.distributed.fleet import Fleet
from sdr1.errors import TrainingError


def stub(start_fails: bool = False) -> type:
    """A worker class; local, so that Ray ships it by value."""

    class Stub:
        def __init__(self) -> None:
            if start_fails:
                raise RuntimeError("no such driver")

        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

        def pid(self) -> int:
            return os.getpid()

        def sleep(self, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

    return Stub


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def fleet_of(calls: Calls, size: Elastic, start_fails: bool = False) -> Fleet:
    return Fleet(
        "rollout",
        lambda: ray.remote(stub(start_fails)).options(num_cpus=1).remote(),
        size,
        calls,
        lambda: None,
    )


def until(condition, calls: Calls, fleet: Fleet, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        calls.wait()
        fleet.tick()


def test_grows_with_the_cluster_and_replaces_what_dies_or_freezes(cluster):
    calls = Calls(timeout=1000.0)
    fleet = fleet_of(calls, Elastic(min=1, max=2))
    until(lambda: fleet.in_service == 1, calls, fleet)
    time.sleep(1)
    calls.wait()
    assert fleet.in_service == 1, "one core holds one worker"
    cluster.add_node(num_cpus=1)
    until(lambda: fleet.in_service == 2, calls, fleet)

    worker = fleet.idle.popleft()
    os.kill(ray.get(worker.actor.pid.remote()), signal.SIGKILL)
    lost = []
    calls.add(
        worker.actor.sleep.remote(0),
        lost.append,
        lambda error: (lost.append(error), fleet.evict(worker, error)),
    )
    until(lambda: len(lost) == 1 and fleet.in_service == 2, calls, fleet)
    assert isinstance(lost[0], ray.exceptions.RayError)

    frozen = fleet.idle.popleft()
    os.kill(ray.get(frozen.actor.pid.remote()), signal.SIGSTOP)
    short = Calls(timeout=2.0)
    short.add(
        frozen.actor.sleep.remote(0),
        lost.append,
        lambda error: (lost.append(error), fleet.evict(frozen, error)),
    )
    until(lambda: len(lost) == 2, short, fleet)
    until(lambda: fleet.in_service == 2, calls, fleet)
    assert frozen not in fleet.idle
    for each in list(fleet.idle):
        ray.kill(each.actor)


def test_workers_that_never_start_stop_the_run(cluster, monkeypatch):
    monkeypatch.setattr("sdr1.distributed.fleet._LONGEST_BACKOFF", 0.1)
    calls = Calls(timeout=1000.0)
    fleet = fleet_of(calls, Elastic(min=1, max=1), start_fails=True)
    with pytest.raises(TrainingError, match=r"rollout.workers: \d+ died in a row.*no such driver"):
        until(lambda: False, calls, fleet, 120)
