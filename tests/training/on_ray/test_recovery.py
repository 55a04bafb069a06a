"""What is lost on its way is made again in the same order; what cannot be is named. With actors that only sleep."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import ray

from benchmarks.suite.schedule import stubs
from sdr1.base.errors import TrainingError
from sdr1.base.records import LearnerState, Prompt, Weights
from sdr1.config.training import validate
from sdr1.prompts.stream import PromptStream
from sdr1.training import loop
from sdr1.training.on_ray.executor import RayExecutor, Roles
from sdr1.training.on_ray.work import Published, State

pytestmark = pytest.mark.usefixtures("shared_ray")
GROUPS = 6


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
            super().__init__(config, state)
            self.order = list(state.variances["order"]) if state else []

        def accumulate(self, task, experience, scores):
            if task.group != len(self.order) % GROUPS:
                return None
            self.order.append((task.iteration, task.group))
            return super().accumulate(task, experience, scores)

        def state(self, iteration):
            weights = (Weights(iteration, np.zeros(8, np.uint8), 0),)
            return LearnerState(iteration, weights, None, {"order": tuple(self.order)})

    return Roles(rollout or base.rollout, base.reward, Learner)


def frozen_once(path, role: type, method: str) -> type:
    """The role, one of whose workers freezes in its first call of the method; no other ever does.

    All of it is local, so that Ray ships it by value: its workers cannot import a test.
    """

    def struck(self, *arguments):
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return getattr(role, method)(self, *arguments)
        os.kill(os.getpid(), signal.SIGSTOP)
        return None

    return type(role.__name__, (role,), {method: struck})


def counted(role: type, lives) -> type:
    """The role, whose starts each leave a letter in the file; local as in `frozen_once`."""

    class Counted(role):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            with open(lives, "a") as file:
                file.write("x")

    return Counted


def config_of(
    tmp_path, iterations: int = 2, learner: str = "cpu", task_timeout: float = 600.0, workers: int = 2
):
    return validate(
        {
            "iterations": iterations,
            "run": {"directory": str(tmp_path), "task_timeout": task_timeout},
            "prompts": {"per_iteration": GROUPS},
            "rollout": {"workers": workers, "group_size": 2},
            "learner": {"device": learner},
        }
    )


def run(
    tmp_path,
    roles: Roles,
    strike=None,
    iterations: int = 2,
    at: tuple[int, int] = (1, 1),
    task_timeout: float = 600.0,
    workers: int = 2,
):
    config = config_of(tmp_path, iterations, task_timeout=task_timeout, workers=workers)
    return run_with(RayExecutor(config, roles=roles), config, strike, at)


def run_with(executor: RayExecutor, config, strike=None, at: tuple[int, int] = (1, 1)):
    """What was observed, and the order in which the learner took the groups."""
    record = Record(*at, lambda: strike(executor) if strike else None)
    loop.run(config, PromptStream([[Prompt("a red circle", "safe")]], config), executor, [record])
    order = ray.get(executor._learner.first.state(config.iterations)).variances["order"]
    return record, order


def group_of(executor: RayExecutor, iteration: int, group: int):
    return next(g for t, g in executor._groups.items() if (t.iteration, t.group) == (iteration, group))


EVERYTHING = tuple((iteration, group) for iteration in range(2) for group in range(GROUPS))


def test_groups_lost_on_their_way_to_the_learner_are_made_again_in_order(tmp_path):
    hit = []

    def strike(executor):
        """The learner works on group 1; group 2 goes to it with experience that is gone, and 3 right behind."""
        group = group_of(executor, 1, 2)
        while group.state is not State.SCORED:
            executor._wait()
        group.made = group.made._replace(experience=gone())
        hit.append(group)

    record, order = run(tmp_path, roles_of(), strike)
    assert hit
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_a_learner_that_dies_goes_on_from_its_last_snapshot(tmp_path):
    record, order = run(tmp_path, roles_of(), lambda executor: executor._learner.kill())
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_a_dead_learner_is_noticed_while_a_group_is_still_being_drawn(tmp_path):
    """The last groups of an iteration may take minutes; the next learner starts meanwhile."""
    roles, lives, late = roles_of(), tmp_path / "lives", tmp_path / "late"

    class Rollout(roles.rollout):
        def rollout(self, task):
            end = time.monotonic() + 60
            while (task.iteration, task.group) == (1, GROUPS - 1) and lives.read_text() == "x":
                if time.monotonic() > end:
                    late.touch()
                    break
                time.sleep(0.02)
            return super().rollout(task)

    def strike(executor):
        """The learner dies when it has done all that it was given; it is given one more group before the last."""
        while not all(answer.ended for _, answer in executor._handed):
            executor._wait()
        executor._learner.kill()

    slow = roles._replace(rollout=Rollout, learner=counted(roles.learner, lives))
    record, order = run(tmp_path, slow, strike, at=(1, GROUPS - 3), workers=1)
    assert not late.exists()
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_weights_that_are_gone_are_published_again(tmp_path):
    def strike(executor):
        """All rollout workers die and with them the node that held the weights."""
        ((version, published),) = executor._versions.items()
        executor._versions[version] = Published(gone(), published.checksum)
        for worker in list(executor._rollouts._workers):
            worker.actor.kill()

    record, order = run(tmp_path, roles_of(), strike, at=(1, 0))
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_the_death_of_an_old_copy_touches_nothing_that_was_made_since(tmp_path):
    """A worker holds group 4 while the learner dies; it dies itself when another one's copy is scored."""
    calls, fatal = tmp_path / "calls", tmp_path / "fatal"

    class Rollout(stubs(0.02, 0.0).rollout):
        def rollout(self, task):
            if (task.iteration, task.group) == (1, 4):
                with open(calls, "a") as file:
                    file.write("called\n")
                if calls.read_text() == "called\n":
                    while not fatal.exists():
                        time.sleep(0.02)
                    os._exit(1)
            return super().rollout(task)

    class Strike(Record):
        def accumulated(self, task):
            at, executor = (task.iteration, task.group), self._strike
            if at == (1, 1) and not self.old:
                while not calls.exists():
                    executor._wait()
                self.old.append(group_of(executor, 1, 4))
                executor._learner.kill()
            # A group that was on its way when the learner was killed may come before its death is noticed.
            elif (
                at == (1, 2)
                and self.old
                and group_of(executor, 1, 4) is not self.old[0]
                and not fatal.exists()
            ):
                while (group_of(executor, 1, 4)).state is not State.SCORED:
                    executor._wait()
                fatal.touch()
                before = set(executor._rollouts._workers)
                while before <= executor._rollouts._workers:
                    executor._wait()

    config = config_of(tmp_path)
    executor = RayExecutor(config, roles=roles_of(Rollout))
    record = Strike(0, 0, executor)
    record.old = []
    loop.run(config, PromptStream([[Prompt("a red circle", "safe")]], config), executor, [record])
    assert calls.read_text() == "called\n" * 2, "once by the worker that died, once by the other"
    assert record.old[0] is not group_of(executor, 1, 4)
    assert executor.images(record.old[0].task) is not None
    executor.recover("asked for")
    assert executor.images(record.old[0].task) is None


def test_a_version_made_again_with_other_bits_is_loaded_again(tmp_path):
    """As on GPUs: the number of the version is the same, the bits are not."""
    roles, lives, worked = roles_of(), tmp_path / "lives", tmp_path / "worked"

    class Learner(counted(roles.learner, lives)):
        def publish(self, version):
            life = len(lives.read_text())
            return Weights(version, np.full(8, life, np.uint8), life), life

    class Rollout(roles.rollout):
        def load(self, weights):
            self.life = int(weights.buffer[0])
            return self.life

        def rollout(self, task):
            with open(worked, "a") as file:
                file.write(f"{task.iteration} {task.group} {self.life}\n")
            return super().rollout(task)

    def strike(executor):
        group = group_of(executor, 1, 5)
        while group.state is not State.SCORED:
            executor._wait()
        executor._learner.kill()

    run(tmp_path, roles._replace(rollout=Rollout, learner=Learner), strike)
    lines = worked.read_text().split("\n")
    assert {f"1 {group} 2" for group in range(GROUPS)} <= set(lines)


def test_a_task_that_kills_its_workers_is_named(tmp_path):
    class Rollout(stubs(0.02, 0.0).rollout):
        def rollout(self, task):
            if (task.iteration, task.group) == (0, 3):
                os._exit(1)
            return super().rollout(task)

    with pytest.raises(TrainingError, match=r"iteration 0, group 3 .* was lost 5 times, perhaps it kills"):
        run(tmp_path, roles_of(Rollout), workers=1)


@pytest.mark.parametrize(
    ("role", "method"),
    [
        pytest.param("rollout", "rollout", marks=pytest.mark.slow),
        pytest.param("reward", "score", marks=pytest.mark.slow),
        ("learner", "step"),
    ],
)
def test_a_frozen_worker_is_replaced_after_its_deadline(tmp_path, role, method):
    roles = roles_of()
    frozen = frozen_once(tmp_path / "struck", getattr(roles, role), method)
    record, order = run(tmp_path, roles._replace(**{role: frozen}), task_timeout=8.0)
    assert (tmp_path / "struck").exists()
    assert order == EVERYTHING
    assert record.iterations == [0, 1]


def test_a_worker_with_other_weights_gets_no_work(tmp_path):
    class Rollout(stubs(0.02, 0.0).rollout):
        def load(self, weights):
            return 7

        def rollout(self, task):
            (tmp_path / "worked").touch()

    with pytest.raises(TrainingError, match="holds other weights than version 0: 0000000000000007"):
        run(tmp_path, roles_of(Rollout), workers=1)
    assert not (tmp_path / "worked").exists()


def test_a_learner_that_dies_again_and_again_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sdr1.training.on_ray.executor.MAX_LEARNER_DEATHS", 2)
    roles, starts = roles_of(), tmp_path / "starts"

    class Learner(roles.learner):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            with open(starts, "a") as file:
                file.write(f"{time.time()}\n")

        def step(self):
            os._exit(1)

    with pytest.raises(TrainingError, match="the learner was lost 3 times in a row without one update"):
        run(tmp_path, roles._replace(learner=Learner), workers=1)
    assert len(starts.read_text().splitlines()) == 3


def test_waiting_for_a_learner_says_what_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sdr1.distributed.placement.SAY_EVERY", 0.1)
    executor = RayExecutor(config_of(tmp_path, learner="cuda"), roles=roles_of())
    while not any("the learner" in message for message in caplog.messages):
        executor._wait()
    executor._learner.kill()
    (said,) = [message for message in caplog.messages if "the learner" in message]
    assert (
        "waiting for the learner: 0 of 1 in service; each needs 1 CPU and 1 GPU; the cluster has 5 CPU and"
        in said
    )
