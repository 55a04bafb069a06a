"""A fleet that grows and shrinks within an iteration: the same bits, and throughput that follows the workers."""

from __future__ import annotations

import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.suite.schedule import stubs
from sdr1 import loop, prompts
from sdr1.config import validate
from sdr1.distributed.executor import RayExecutor
from sdr1.prompts import PromptStream
from sdr1.train import train
from sdr1.types import Prompt
from sdr1.weights import sha256

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_from_one_to_four_to_two_within_iterations_changes_no_bit(cluster, small, tmp_path):
    options = {"prompts": {"per_iteration": 64, "unsafe_share": 0.5}, "learner": {"micro_batch": 6}}
    config = small(4, rollout={"group_size": 3, "workers": {"min": 1, "max": 4}}, **options)
    executor = RayExecutor(config)
    nodes, seen = [], []

    class Changes:
        def accumulated(self, task):
            seen.append((task.iteration, task.group, executor._rollouts.in_service))
            if not nodes and task.group == 5:
                nodes.extend(cluster.add_node(num_cpus=1) for _ in range(3))
            if len(nodes) == 3 and executor._rollouts.in_service == 4 and 0 < task.group < 60:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        def iteration(self, *_):
            pass

    weights = loop.run(config, PromptStream(prompts.read(config.prompts.path), config), executor, [Changes()])
    in_service = [workers for *_, workers in seen]
    assert max(in_service) == 4, "it grew"
    assert len(nodes) == 1
    assert min(in_service[in_service.index(4) :]) == 2, "it shrank"
    alone = train(small(4, rollout={"group_size": 3}, **options), local=True)
    assert sha256(weights) == alone.weights_sha256


def test_throughput_follows_the_number_of_workers(cluster):
    seconds, window = 0.5, 10.0
    config = validate(
        {
            "iterations": 1,
            "prompts": {"per_iteration": 2000},
            "rollout": {"workers": {"min": 1, "max": 4}, "group_size": 2},
        }
    )
    ended: list[float] = []

    class Timed(RayExecutor):
        def _rolled_out(self, *arguments):
            ended.append(time.monotonic())
            super()._rolled_out(*arguments)

    executor = Timed(config, roles=stubs(seconds, 0.0))
    executor.publish(0)
    executor.submit(PromptStream([Prompt("a red circle", "safe")], config).tasks(0, version=0))
    ratios = {}

    def measure(workers: int) -> None:
        """Groups that ended within a window, over those that as many busy workers would make."""
        end = time.monotonic() + 120
        while executor._rollouts.in_service != workers:
            assert time.monotonic() < end, f"never {workers} workers"
            executor._wait()
        settled = time.monotonic() + 2
        while time.monotonic() < settled + window:
            executor._wait()
        made = sum(settled < at < settled + window for at in ended)
        ratios[workers] = made * seconds / (workers * window)

    measure(1)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    measure(4)
    change = threading.Thread(target=lambda: [cluster.remove_node(node) for node in nodes[:2]])
    change.start()
    measure(2)
    change.join()
    print(ratios)
    assert min(ratios.values()) >= 0.9, ratios
