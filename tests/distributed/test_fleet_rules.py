"""The fleet's rules without a cluster: actors and calls are pretended, so that every order of events can be played."""

from __future__ import annotations

import pytest
import ray

from sdr1.config.workers import Elastic
from sdr1.distributed import fleet as module
from sdr1.distributed.calls import Stalled
from sdr1.distributed.fleet import Fleet, backoff


class Calls:
    """Remembers who waits for which answer."""

    def __init__(self) -> None:
        self.waiting = {}

    def add(self, ref, done, lost, *, starting=()):
        self.waiting[ref] = done, lost

    def answer(self, worker, node="n"):
        self.waiting.pop(worker.actor)[0](node)

    def lose(self, worker, error):
        self.waiting.pop(worker.actor)[1](error)


@pytest.fixture
def fleet(monkeypatch):
    """Three workers in service; an actor stands for its own answer."""

    class Actor:
        killed = False

        def node(self):
            return self

        def kill(self):
            self.killed = True

    monkeypatch.setattr(module, "_draining_nodes", set)
    calls = Calls()
    fleet = Fleet("workers", Actor, Elastic(min=1, max=3), calls, lambda: None)
    for worker in list(fleet._workers):
        calls.answer(worker)
    return fleet


def test_after_a_death_idle_workers_work_again_only_once_they_have_answered(fleet):
    calls, (dead, also_dead, alive) = fleet._calls, list(fleet.idle)
    fleet.idle.remove(dead)
    fleet.evict(dead, RuntimeError("gone"))
    assert not fleet.idle, "nothing can be given to the other dead one"
    calls.lose(also_dead, RuntimeError("gone with it"))
    calls.answer(alive)
    assert list(fleet.idle) == [alive]
    assert fleet.in_service == 1
    assert len(fleet._due) == 2, "both are replaced"
    assert dead.actor.killed
    assert also_dead.actor.killed


def test_idle_workers_are_asked_from_time_to_time(fleet, monkeypatch):
    fleet.tick()
    assert len(fleet.idle) == 3
    fleet._looked -= 60
    fleet.tick()
    assert not fleet.idle
    for worker in list(fleet._workers):
        fleet._calls.answer(worker)
    assert len(fleet.idle) == 3
    assert all(not worker.proven for worker in fleet.idle), "an answer is no work"


def test_a_worker_that_is_asked_while_its_node_drains_ends(fleet, monkeypatch):
    fleet._looked -= 60
    fleet.tick()
    worker = next(iter(fleet._workers))
    worker.node = "draining"
    monkeypatch.setattr(module, "_draining_nodes", lambda: {"draining"})
    fleet._looked -= 60
    fleet.tick()
    assert worker.leaving
    fleet._calls.answer(worker, "draining")
    assert worker.actor.killed
    assert worker not in fleet.idle
    assert len(fleet._workers) == 3, "its successor starts"


def test_losses_are_counted_by_cause_and_one_that_leaves_is_not_lost_again(fleet, monkeypatch):
    dead, stalled, leaving = fleet._workers
    fleet.evict(dead, RuntimeError("gone"))
    fleet.evict(dead, RuntimeError("gone, told twice"))
    fleet.evict(stalled, Stalled("no answer for 5 s"))
    leaving.node = "draining"
    monkeypatch.setattr(module, "_draining_nodes", lambda: {"draining"})
    fleet._looked -= 60
    fleet.tick()
    fleet.evict(leaving, RuntimeError("gone with its node"))
    assert fleet.losses == {"died": 1, "stalled": 1, "left": 1}


def refusing() -> ray.exceptions.RayActorError:
    return ray.exceptions.RayActorError(
        error_msg="The actor died because of an error raised in its creation task, ray::Stub.__init__()\n"
        "Traceback (most recent call last):\nsdr1.base.errors.UserError: policy.model: no such folder",
        actor_init_failed=True,
    )


def test_a_refusal_is_the_worker_s_own_node_s_fault_once_another_has_started(fleet):
    fleet._start()
    joiner = next(worker for worker in fleet._workers if worker.node is None)
    fleet._calls.lose(joiner, refusing())
    assert len(fleet._due) == 1, "it is replaced like any other"


def test_the_wait_before_a_new_start_doubles_up_to_a_bound():
    assert [backoff(deaths) for deaths in range(4)] == [0.25, 0.5, 1.0, 2.0]
    assert backoff(1000) == 30.0
