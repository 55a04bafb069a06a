"""What is lost on its way is made again in the same order; what cannot be is named. With actors that only sleep."""

from __future__ import annotations

import os

import numpy as np
import pytest
import ray

from benchmarks.suite.schedule import stubs
from sdr1 import loop
from sdr1.config import validate
from sdr1.distributed.executor import RayExecutor, Roles
from sdr1.errors import TrainingError
from sdr1.prompts import PromptStream
from sdr1.types import LearnerState, Prompt

GROUPS = 6


@pytest.fixture(scope="module", autouse=True)
def _ray():
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote
class Owner:
    """Owns an object as a node holds one: when it goes, the object is gone."""

    def make(self):
        return [ray.put(np.zeros(10**6))]


def gone() -> ray.ObjectRef:
    owner = Owner.remote()
    (ref,) = ray.get(owner.make.remote())
    ray.kill(owner)
    return ref


class Record:
    """Observer that takes snapshots, and runs `strike` once, after a group."""

    def __init__(self, iteration: int, group: int, strike) -> None:
        self._when, self._strike, self.iterations = (iteration, group), strike, []

    def accumulated(self, task):
        if self._strike is not None and (task.iteration, task.group) == self._when:
            strike, self._strike = self._strike, None
            strike()

    def iteration(self, iteration, _metrics, _tasks, executor):
        self.iterations.append(iteration)
        executor.snapshot(iteration + 1)


def roles_of(rollout: type | None = None) -> Roles:
    """Stubs whose learner keeps to the order, as the real one does, and remembers what it accumulated."""
    base = stubs(0.02, 0.05)

    class Learner(base.learner):
        def __init__(self, config, state):
            self.order = list(state.variances["order"]) if state else []

        def accumulate(self, task, trajectory, scores):
            if task.group != len(self.order) % GROUPS:
                return None
            self.order.append((task.iteration, task.group))
            return super().accumulate(task, trajectory, scores)

        def state(self, iteration):
            return LearnerState(iteration, iteration, {}, {"order": tuple(self.order)})

    return Roles(rollout or base.rollout, base.reward, Learner)


def run(tmp_path, roles: Roles, strike=None, iterations: int = 2, at: tuple[int, int] = (1, 1)):
    config = validate(
        {
            "policy": {"steps": 2},
            "iterations": iterations,
            "run": {"directory": str(tmp_path)},
            "prompts": {"per_iteration": GROUPS},
            "rollout": {"workers": 2, "group_size": 2},
        }
    )
    executor = RayExecutor(config, roles=roles)
    record = Record(*at, lambda: strike(executor) if strike else None)
    loop.run(config, PromptStream([Prompt("a red circle", "safe")], config), executor, [record])
    order = ray.get(executor._learner.first.state.remote(iterations)).variances["order"]
    return record, order


EVERYTHING = tuple((iteration, group) for iteration in range(2) for group in range(GROUPS))


def test_groups_lost_on_their_way_to_the_learner_are_made_again_in_order(tmp_path):
    hit = []

    def strike(executor):
        """The learner works on group 1; group 2 goes to it with a trajectory that is gone, and 3 right behind."""
        task = next(t for t in executor._wanted if (t.iteration, t.group) == (1, 2))
        while task not in executor._scored:
            executor._wait()
        executor._made[task] = gone(), executor._made[task][1]
        hit.append(task)

    record, order = run(tmp_path, roles_of(), strike)
    assert hit
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_a_learner_that_dies_goes_on_from_its_last_snapshot(tmp_path):
    record, order = run(tmp_path, roles_of(), lambda executor: executor._learner.kill())
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_weights_that_are_gone_are_published_again(tmp_path):
    def strike(executor):
        """All rollout workers die and with them the node that held the weights."""
        ((version, (_, checksum)),) = executor._versions.items()
        executor._versions[version] = gone(), checksum
        for worker in list(executor._rollouts._workers):
            ray.kill(worker.actor)

    record, order = run(tmp_path, roles_of(), strike, at=(1, 0))
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_a_task_that_kills_its_workers_is_named(tmp_path):
    class Rollout(stubs(0.02, 0.0).rollout):
        def rollout(self, task):
            if (task.iteration, task.group) == (0, 3):
                os._exit(1)
            return super().rollout(task)

    with pytest.raises(TrainingError, match=r"iteration 0, group 3 .* was lost 5 times, perhaps it kills"):
        run(tmp_path, roles_of(Rollout))
