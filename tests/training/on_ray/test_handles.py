"""A handle offers the calls that its role answers, with the same parameters: Ray itself checks nothing of it."""

from __future__ import annotations

import inspect

import pytest

from benchmarks.suite.schedule import stubs
from sdr1.distributed.actor import Actor, Handle
from sdr1.evaluation import on_ray as evaluation
from sdr1.training.on_ray.actors import LearnerActor, RewardActor, RolloutActor
from sdr1.training.on_ray.handles import LearnerHandle, RewardHandle, RolloutHandle

STUBS = stubs(0.0, 0.0)


def calls(kind: type) -> dict[str, list[str]]:
    """The public methods of a class's own, and the names of their parameters."""
    own = {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"}
    # Ray gives the methods of a class that it has wrapped a parameter of its own.
    return {
        name: [each for each in inspect.signature(value).parameters if each != "_ray_trace_ctx"]
        for name, value in own.items()
    }


@pytest.mark.parametrize(
    ("handle", "role"),
    [
        (RolloutHandle, RolloutActor),
        (RewardHandle, RewardActor),
        (LearnerHandle, LearnerActor),
        (evaluation.PainterHandle, evaluation.PainterActor),
        (evaluation.JudgeHandle, evaluation.JudgeActor),
    ],
)
def test_a_handle_offers_what_its_role_answers(handle, role):
    assert issubclass(handle, Handle)
    assert issubclass(role, Actor)
    assert calls(handle) == calls(role)


@pytest.mark.parametrize(
    ("stub", "role"),
    [(STUBS.rollout, RolloutActor), (STUBS.reward, RewardActor), (STUBS.learner, LearnerActor)],
)
def test_the_stubs_of_benchmarks_answer_as_the_roles_do(stub, role):
    asked = calls(stub)
    assert {name: calls(role)[name] for name in asked} == asked
