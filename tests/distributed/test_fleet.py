"""The fleet on a real, small Ray cluster with stub workers: growing, replacing, refusing to go on."""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from sdr1.base.errors import TrainingError, UserError
from sdr1.config.workers import Elastic
from sdr1.distributed.actor import Handle
from sdr1.distributed.calls import Calls
from sdr1.distributed.fleet import Fleet, _draining_nodes
from sdr1.distributed.placement import Placement


def stub(start_fails: bool = False, starts: Path | None = None, first_freezes: bool = False) -> type:
    """A worker class; local, so that Ray ships it by value."""

    class Stub:
        def __init__(self) -> None:
            if first_freezes and not starts.exists():
                starts.touch()
                os.kill(os.getpid(), signal.SIGSTOP)
            if starts is not None:
                with open(starts, "a") as file:
                    file.write(f"{time.time()}\n")
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


class StubHandle(Handle):
    def pid(self):
        return self._actor.pid.remote()

    def sleep(self, seconds):
        return self._actor.sleep.remote(seconds)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def gone(actor: StubHandle) -> bool:
    """Whether the actor has ended; a killed one may still answer for a moment."""
    try:
        ray.get(actor.pid(), timeout=30)
    except ray.exceptions.RayActorError:
        return True
    return False


def fleet_of(calls: Calls, size: Elastic, start_fails: bool = False, starts: Path | None = None) -> Fleet:
    return Fleet(
        "rollout workers",
        Placement.on("cpu", 1, StubHandle, stub(start_fails, starts)),
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


@pytest.mark.slow
def test_grows_with_the_cluster_and_replaces_what_dies_or_freezes(cluster):
    calls = Calls(1000.0, 1000.0)
    fleet = fleet_of(calls, Elastic(min=1, max=2))
    until(lambda: fleet.in_service == 1, calls, fleet)
    time.sleep(1)
    calls.wait()
    assert fleet.in_service == 1, "one core holds one worker"
    cluster.add_node(num_cpus=1)
    until(lambda: len(fleet.idle) == 2, calls, fleet)

    unheard = fleet.idle[0]
    os.kill(ray.get(unheard.actor.pid()), signal.SIGKILL)
    until(lambda: len(fleet.idle) == 2 and unheard not in fleet.idle, calls, fleet)

    worker = fleet.idle.popleft()
    os.kill(ray.get(worker.actor.pid()), signal.SIGKILL)
    lost = []
    calls.add(
        worker.actor.sleep(0),
        lost.append,
        lambda error: (lost.append(error), fleet.evict(worker, error)),
    )
    until(lambda: len(lost) == 1 and len(fleet.idle) == 2, calls, fleet)
    assert isinstance(lost[0], ray.exceptions.RayError)

    frozen = fleet.idle.popleft()
    os.kill(ray.get(frozen.actor.pid()), signal.SIGSTOP)
    short = Calls(2.0, 2.0)
    short.add(
        frozen.actor.sleep(0),
        lost.append,
        lambda error: (lost.append(error), fleet.evict(frozen, error)),
    )
    until(lambda: len(lost) == 2, short, fleet)
    until(lambda: len(fleet.idle) == 2, calls, fleet)
    assert frozen not in fleet.idle
    for each in list(fleet.idle):
        each.actor.kill()


def test_a_busy_worker_on_a_draining_node_finishes_and_then_ends(cluster, monkeypatch):
    cluster.add_node(num_cpus=1)
    calls = Calls(1000.0, 1000.0)
    fleet = fleet_of(calls, Elastic(min=1, max=1))
    until(lambda: len(fleet.idle) == 1, calls, fleet)
    worker = fleet.idle.popleft()
    finished: list[float] = []
    calls.add(
        worker.actor.sleep(4),
        lambda value: (finished.append(value), fleet.release(worker)),
        lambda error: fleet.evict(worker, error),
    )
    monkeypatch.setattr("sdr1.distributed.fleet._draining_nodes", lambda: {worker.node})
    until(lambda: worker.leaving, calls, fleet)
    monkeypatch.setattr("sdr1.distributed.fleet._draining_nodes", set)
    assert not finished, "it leaves while it works"
    until(lambda: finished and len(fleet.idle) == 1, calls, fleet)
    assert worker not in fleet.idle, "a successor took its place"
    until(lambda: gone(worker.actor), calls, fleet)
    fleet.idle[0].actor.kill()


def test_waiting_says_what_is_missing(cluster, monkeypatch, caplog):
    monkeypatch.setattr("sdr1.distributed.placement.SAY_EVERY", 0.1)
    calls = Calls(1000.0, 1000.0)
    fleet = Fleet(
        "rollout workers",
        Placement.on("cuda", 2, StubHandle, stub()),
        Elastic(min=1, max=1),
        calls,
        lambda: None,
    )
    until(lambda: caplog.messages, calls, fleet)
    assert (
        "waiting for rollout workers: 0 of 1 in service; each needs 2 CPU and 1 GPU; the cluster has"
        in (caplog.messages[0])
    )
    assert "0 GPU, free" in caplog.messages[0]


@pytest.mark.slow
def test_a_worker_that_freezes_in_its_start_is_replaced_and_one_without_a_place_is_not(
    cluster, tmp_path, caplog
):
    calls = Calls(1000.0, 20.0)
    freezing = stub(starts=tmp_path / "starts", first_freezes=True)
    fleet = Fleet(
        "workers", Placement.on("cpu", 1, StubHandle, freezing), Elastic(min=1, max=1), calls, lambda: None
    )
    (frozen,) = fleet._workers
    waiting = Placement.on("cpu", 1000, StubHandle, stub())()
    until(lambda: len(fleet.idle) == 1, calls, fleet, 300)
    assert fleet.idle[0] is not frozen
    assert "one of the workers was lost (no answer for 20 s); it is replaced" in caplog.messages
    assert fleet.idle[0].actor.has_process()
    assert not waiting.has_process()
    fleet.close()
    waiting.kill()


@pytest.mark.slow
def test_workers_that_never_start_stop_the_run(cluster, monkeypatch):
    monkeypatch.setattr("sdr1.distributed.fleet._LONGEST_BACKOFF", 0.1)
    calls = Calls(1000.0, 1000.0)
    fleet = fleet_of(calls, Elastic(min=1, max=1), start_fails=True)
    with pytest.raises(TrainingError, match=r"rollout workers: \d+ died in a row.*no such driver"):
        until(lambda: False, calls, fleet, 120)


def test_a_constructor_that_refuses_ends_the_run_at_its_first_word(cluster, tmp_path):
    starts = tmp_path / "starts"

    class Refuses(stub()):
        def __init__(self) -> None:
            with open(starts, "a") as file:
                file.write("started\n")
            raise UserError("reward.terms.mine: division by zero; mend the factory")

    calls = Calls(1000.0, 1000.0)
    fleet = Fleet(
        "workers", Placement.on("cpu", 1, StubHandle, Refuses), Elastic(min=1, max=1), calls, lambda: None
    )
    with pytest.raises(UserError, match=r"^reward.terms.mine: division by zero; mend the factory$"):
        until(lambda: False, calls, fleet, 120)
    assert starts.read_text() == "started\n"


def test_replacements_come_later_and_later(cluster, tmp_path):
    calls, starts = Calls(1000.0, 1000.0), tmp_path / "starts"
    fleet = fleet_of(calls, Elastic(min=1, max=1), start_fails=True, starts=starts)
    until(lambda: starts.exists() and len(starts.read_text().splitlines()) == 4, calls, fleet, 120)
    times = [float(line) for line in starts.read_text().splitlines()]
    for (before, after), least in zip(pairwise(times), (0.5, 1.0, 2.0), strict=True):
        assert after - before > least


def test_ray_shows_a_node_that_drains(cluster):
    node = cluster.add_node(num_cpus=1, resources={"here": 1})
    # A node without work is gone at once.
    worker = ray.remote(num_cpus=1, resources={"here": 1})(stub()).remote()
    assert ray.get(worker.node.remote()) == node.node_id
    assert node.node_id not in _draining_nodes()
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int(1000 * (time.time() + 60))
    accepted, why_not = ray._raylet.GcsClient(address=cluster.address).drain_node(
        node.node_id, reason, "", deadline
    )
    assert accepted, why_not
    end = time.monotonic() + 30
    while node.node_id not in _draining_nodes():
        assert time.monotonic() < end
        time.sleep(0.1)
