"""Deadlines without a cluster: the clock, Ray's answers and its knowledge of actors are pretended."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from sdr1.distributed import calls as module
from sdr1.distributed.calls import Calls, Stalled


@pytest.fixture
def world(monkeypatch):
    """Nothing ever answers; `at` moves the clock and looks, `placed` are the actors that have a process."""

    class World:
        now = 0.0

        def at(self, seconds):
            self.now = seconds
            self.calls.wait()
            return self.lost

        def actor(self, name):
            return SimpleNamespace(has_process=lambda: name in self.placed)

    world = World()
    world.placed, world.lost = set(), []
    monkeypatch.setattr(module.ray, "wait", lambda *_, **__: ([], []))
    monkeypatch.setattr(module, "pause", lambda seconds: None)
    monkeypatch.setattr(module.time, "monotonic", lambda: world.now)
    world.calls = Calls(30.0, 100.0)
    return world


def test_a_call_is_lost_after_its_timeout(world):
    world.calls.add("ref", print, world.lost.append)
    assert not world.at(29)
    (error,) = world.at(31)
    assert isinstance(error, Stalled)
    assert str(error) == "no answer for 30 s"
    assert world.at(1000) == [error], "once"


def test_waiting_for_resources_has_no_end_and_a_start_then_has_its_whole_time(world):
    world.calls.add("ref", print, world.lost.append, starting=[world.actor("actor")])
    for seconds in range(1000):
        assert not world.at(seconds)
    world.placed.add("actor")
    # It may be noticed a tenth of the timeout later.
    for seconds in range(1000, 1100):
        assert not world.at(seconds)
    for seconds in range(1100, 1113):
        world.at(seconds)
    assert [str(error) for error in world.lost] == ["no answer for 100 s"]


def test_a_rank_does_not_hang_while_another_waits_for_its_place(world):
    world.placed.add("first")
    world.calls.add("ref", print, world.lost.append, starting=[world.actor("first"), world.actor("second")])
    for seconds in range(1000):
        assert not world.at(seconds)


def test_waiting_for_nothing_takes_its_time(monkeypatch):
    """As Ray answers: nothing of nothing is ready, at once."""
    monkeypatch.setattr(module.ray, "wait", lambda *_, **__: ([], []))
    begin = time.monotonic()
    Calls(30.0, 100.0).wait()
    assert time.monotonic() - begin > module.TICK / 2
