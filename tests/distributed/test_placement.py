"""Where actors that need next to nothing go."""

from __future__ import annotations

import pytest
import ray
from ray.cluster_utils import Cluster

from sdr1.distributed.actor import Handle
from sdr1.distributed.placement import Placement, least_cpus


@pytest.fixture
def other():
    """The only node but a head without CPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield node.node_id
    ray.shutdown()
    cluster.shutdown()


def test_a_head_without_work_gets_none(other):
    # Local, so that Ray ships it by value: its workers cannot import a test.
    class Here:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    full = ray.remote(num_cpus=1)(Here).remote()
    assert ray.get(full.node.remote()) == other
    worker = Placement(Handle, Here, (), least_cpus(), 0)()
    answer = worker.node()
    # One that asks for nothing would have started by now.
    assert not ray.wait([answer], timeout=10)[0]
    ray.kill(full)
    assert ray.get(answer) == other


def test_where_every_node_works_no_place_is_taken(monkeypatch):
    cpus = {True: (1, 2), False: (0,)}
    nodes = [{"Alive": alive, "Resources": {"CPU": each}} for alive in cpus for each in cpus[alive]]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert least_cpus() == 0
