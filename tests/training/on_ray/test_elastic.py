"""A fleet that grows and shrinks within an iteration: the same bits, and throughput that follows the workers."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.suite.schedule import stubs
from sdr1.base.records import Prompt
from sdr1.config.training import validate
from sdr1.distributed.calls import MAX_REMAKES
from sdr1.models.flat import sha256
from sdr1.prompts import stream as prompts
from sdr1.prompts.stream import PromptStream
from sdr1.training import loop
from sdr1.training.on_ray.executor import RayExecutor
from sdr1.training.on_ray.work import State
from sdr1.training.run import train
from tests.training.on_ray.test_recovery import EVERYTHING, GROUPS, config_of, roles_of, run_with

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_from_one_to_four_to_two_within_iterations_changes_no_bit(cluster, small, tmp_path):
    options = {"prompts": {"per_iteration": 40, "unsafe_share": 0.5}, "learner": {"micro_batch": 6}}
    config = small(2, rollout={"group_size": 3, "workers": {"min": 1, "max": 4}}, **options)
    executor = RayExecutor(config)
    nodes, seen = [], []

    def until(workers: int) -> None:
        """The learner waits here; everything else goes on."""
        end = time.monotonic() + 240
        while executor._rollouts.in_service != workers:
            assert time.monotonic() < end, f"never {workers} workers"
            executor._wait()

    class Changes:
        def accumulated(self, task):
            seen.append(executor._rollouts.in_service)
            if (task.iteration, task.group) == (0, 5):
                nodes.extend(cluster.add_node(num_cpus=1) for _ in range(3))
            if (task.iteration, task.group) == (0, 20):
                until(4)
            if (task.iteration, task.group) == (1, 20):
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                until(2)

        def iteration(self, *_):
            pass

    weights = loop.run(config, prompts.load(config), executor, [Changes()])
    groups = config.prompts.per_iteration
    assert set(seen[:5]) == {1}
    assert set(seen[21 : groups + 21]) == {4}, "it grew within an iteration"
    assert set(seen[groups + 21 :]) == {2}, "it shrank within an iteration"
    alone = train(small(2, rollout={"group_size": 3}, **options), local=True)
    assert sha256(weights) == alone.weights_sha256


def test_results_that_went_with_their_node_are_made_again(cluster, tmp_path):
    """The workers' node goes while they idle and what they made waits to be learned from."""

    class Sampler(stubs(0.0, 0.0).rollout):
        def rollout(self, task):
            # Too big to travel inside the answer: it stays in its node's store.
            nothing = np.zeros(1)
            return np.zeros(10**6), nothing, 0.01

    # More workers than times that a group may be lost: none of the dead ones may count against it.
    workers = MAX_REMAKES + 2
    config = config_of(tmp_path, workers=workers)
    # It and the learner fill the head.
    other = ray.remote(num_cpus=1)(Sampler).remote()
    ray.get(other.node.remote())
    executor = RayExecutor(config, roles=roles_of(Sampler))
    ray.get(executor._learner.first.node())
    nodes = [cluster.add_node(num_cpus=workers)]
    lost = []

    def strike(executor):
        waiting = [g for t, g in executor._groups.items() if (t.iteration, t.group) > (1, 1)]
        while len(executor._rollouts.idle) < workers or any(g.state is not State.SCORED for g in waiting):
            executor._wait()
        assert {worker.node for worker in executor._rollouts.idle} == {nodes[0].node_id}
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=workers))
        lost.extend(waiting)

    record, order = run_with(executor, config, strike)
    assert len(lost) == GROUPS - 2
    assert sum(group.losses for group in lost) >= len(lost)
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


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
    executor.submit(PromptStream([[Prompt("a red circle", "safe")]], config).tasks(0, version=0))
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
