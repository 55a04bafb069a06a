"""Where actors that need next to nothing go."""

from __future__ import annotations

import pytest
import ray
from ray.cluster_utils import Cluster

from sdr1.distributed.actor import Handle
from sdr1.distributed.placement import Placement, least_cpus


@pytest.fixture
def cluster():
    """Makes a cluster of a head with so many CPUs and one other node."""
    made: list[Cluster] = []

    def make(head_cpus: int) -> str:
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False}
        )
        made.append(cluster)
        other = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        return other.node_id

    yield make
    ray.shutdown()
    for cluster in made:
        cluster.shutdown()


def test_a_head_without_work_gets_none(cluster):
    # Local, so that Ray ships it by value: its workers cannot import a test.
    class Here:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    other = cluster(0)
    full = ray.remote(num_cpus=1)(Here).remote()
    assert ray.get(full.node.remote()) == other
    worker = Placement(Handle, Here, (), least_cpus(), 0)()
    answer = worker.node()
    # One that asks for nothing would have started by now.
    assert not ray.wait([answer], timeout=10)[0]
    ray.kill(full)
    assert ray.get(answer) == other


def test_where_every_node_works_no_place_is_taken(cluster):
    cluster(1)
    assert least_cpus() == 0
