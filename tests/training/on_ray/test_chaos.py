"""Each kind of victim, killed and frozen once, and one run in which several die; `make chaos` does it at random."""

from __future__ import annotations

import signal

import pytest

from tests.training.on_ray.chaos import VICTIMS, Arena, Event

pytestmark = pytest.mark.slow
HOW = (signal.SIGKILL, signal.SIGSTOP)


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    with Arena(tmp_path_factory.mktemp("chaos")) as arena:
        yield arena


@pytest.fixture(scope="module")
def undisturbed(arena):
    outcome = arena.run("undisturbed")
    assert outcome.sha is not None
    return outcome.sha


@pytest.mark.parametrize(
    "strikes",
    [[(victim, how)] for victim in VICTIMS for how in HOW]
    + [[("rollout", HOW[0]), ("learner", HOW[0]), ("driver", HOW[0])]],
    ids=lambda strikes: "-".join(f"{victim}-{how.name}" for victim, how in strikes),
)
def test_same_bits_and_every_step_once(arena, undisturbed, strikes):
    events = [Event(1 + n, 0.2, victim, how) for n, (victim, how) in enumerate(strikes)]
    name = "-".join(f"{event.victim}-{event.how.name}" for event in events)
    outcome = arena.run(name, events)
    assert outcome.kills == [f"{event.victim}:{event.how.name}" for event in events]
    assert (outcome.sha, outcome.gaps, outcome.repeats) == (undisturbed, 0, 0)
