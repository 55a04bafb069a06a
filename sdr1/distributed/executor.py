"""The executor of a Ray cluster: groups stream rollout -> reward -> learner as references, as soon as each is ready.

Any worker may die at any time. A group that is lost is made again from its seed; a learner that is lost starts again
from the last snapshot, and the loop makes the iterations since then again.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
from ray import ObjectRef

from sdr1.config import Config, bounds
from sdr1.distributed.actors import LearnerActor, RewardActor, RolloutActor
from sdr1.distributed.calls import Calls, get, is_lost_object
from sdr1.distributed.fleet import MAX_DEATHS, Fleet, Worker
from sdr1.distributed.gang import Gang
from sdr1.errors import LearnerLost, TrainingError
from sdr1.types import GroupReport, GroupTask, LearnerState, Scores, UpdateReport, Usage, Weights

MAX_REMAKES = 4
"""Times that one group may be lost before the run stops and names it."""
_log = logging.getLogger("sdr1")


class Roles(NamedTuple):
    """The actor classes; benchmarks put stubs that only sleep in their place."""

    rollout: type = RolloutActor
    reward: type = RewardActor
    learner: type = LearnerActor


ROLES = Roles()


class RayExecutor:
    """Keeps every rollout worker busy; a worker gets work only for a weights version that it has confirmed."""

    def __init__(self, config: Config, state: LearnerState | None = None, roles: Roles = ROLES) -> None:
        self._config, self._roles = config, roles
        self._calls = Calls(config.run.task_timeout)
        self._snapshots: deque[tuple[int, Any]] = deque([(state.iteration if state else 0, state)], maxlen=2)
        self._learner_deaths = 0
        self._start_learner(state)
        # Scoring is a hundredth of a group's work; a whole core for it would starve the other roles.
        self._rewards = Fleet(
            "reward",
            self._place_one("reward", 0),
            bounds(config.reward.workers),
            self._calls,
            self._dispatch_scores,
        )
        self._rollouts = Fleet(
            "rollout",
            self._place_one("rollout", config.run.threads),
            bounds(config.rollout.workers),
            self._calls,
            self._dispatch,
        )
        self._versions: dict[int, tuple[ObjectRef, int]] = {}
        self._queue: deque[GroupTask] = deque()
        self._to_score: deque[GroupTask] = deque()
        self._made: dict[GroupTask, tuple[ObjectRef, ObjectRef]] = {}
        self._scored: dict[GroupTask, ObjectRef] = {}
        self._wanted: set[GroupTask] = set()
        self._losses = Counter[GroupTask]()
        self._reports: list[GroupReport] = []
        self._seconds = [0.0, 0.0]

    def publish(self, version: int) -> None:
        buffer, checksum = self._learner.first.publish.options(num_returns=2).remote(version)
        found = self._learned([checksum, *[rank.checksum.remote() for rank in self._learner.others]])
        if len(set(found)) > 1:
            raise TrainingError(
                f"learner ranks hold different weights after update {version}: they drifted apart"
            )
        self._versions[version] = buffer, found[0]
        for old in [v for v in self._versions if v < version - self._config.rollout.max_staleness]:
            del self._versions[old]
        self._dispatch()

    def submit(self, tasks: Sequence[GroupTask]) -> None:
        oldest = tasks[0].iteration - self._config.rollout.max_staleness
        for task in [task for task in self._wanted if task.iteration < oldest]:
            self._wanted.discard(task)
            self._made.pop(task, None)
            self._scored.pop(task, None)
        self._wanted.update(tasks)
        self._queue.extend(tasks)
        self._dispatch()

    def accumulate(self, task: GroupTask) -> None:
        while True:
            while task not in self._scored:
                self._wait()
            trajectory, _ = self._made[task]
            try:
                reports = self._learner.call("accumulate", task, trajectory, self._scored[task])
                self._reports.append(self._learned(reports)[0])
                return
            except ray.exceptions.ObjectLostError as error:
                # The arguments never reached the learner: nothing of this group was accumulated.
                self._make_again(task, error)

    def step(self) -> tuple[list[GroupReport], UpdateReport]:
        reports, self._reports = self._reports, []
        update = self._learned(self._learner.call("step"))[0]
        self._learner_deaths = 0
        return reports, update

    def usage(self) -> Usage:
        (rollout, reward), self._seconds = self._seconds, [0.0, 0.0]
        return Usage(rollout, reward, max(1, self._rollouts.in_service))

    def images(self, task: GroupTask) -> np.ndarray:
        return get(self._made[task][1])

    def weights(self) -> Weights:
        version = max(self._versions)
        buffer, checksum = self._versions[version]
        return Weights(version, self._learned([buffer])[0], checksum)

    def snapshot(self, iteration: int) -> Callable[[], LearnerState]:
        ref = self._learner.first.state.remote(iteration)
        self._snapshots.append((iteration, ref))
        return partial(get, ref)

    def recover(self) -> int:
        self._learner_deaths += 1
        if self._learner_deaths > MAX_DEATHS:
            raise TrainingError(f"the learner died {self._learner_deaths} times in a row without one update")
        self._learner.kill()
        self._versions, self._reports, self._wanted = {}, [], set()
        self._made, self._scored = {}, {}
        self._queue.clear()
        self._to_score.clear()
        iteration, state = self._last_state()
        _log.warning("the learner was lost; it goes on from iteration %d", iteration)
        self._start_learner(state)
        return iteration

    def _last_state(self) -> tuple[int, LearnerState | None]:
        """The newest snapshot that can still be fetched; they live outside the learner's process."""
        while True:
            iteration, state = self._snapshots[-1]
            if not isinstance(state, ObjectRef):
                return iteration, state
            try:
                return iteration, ray.get(state, timeout=self._config.run.task_timeout)
            except ray.exceptions.RayError:
                if len(self._snapshots) == 1:
                    raise TrainingError(
                        "the learner was lost and so was its last snapshot; go on with --resume"
                    ) from None
                self._snapshots.pop()

    def _place_one(self, role: str, cpus: int, *arguments: Any) -> Callable[[], Any]:
        """What starts one actor of a role."""
        device = getattr(self._config, role).device
        gpus = self._config.gpu_share if device.startswith("cuda") else 0
        actor = ray.remote(getattr(self._roles, role)).options(num_cpus=cpus, num_gpus=gpus)
        return partial(actor.remote, self._config, *arguments)

    def _start_learner(self, state: LearnerState | None) -> None:
        # One copy for all ranks of a node.
        shared = None if state is None else ray.put(state)
        make = self._place_one("learner", self._config.run.threads, shared)
        self._learner = Gang(make, self._config.learner.ranks)
        self._learner_started = False

    def _learned(self, refs: list[ObjectRef]) -> list[Any]:
        """Wait for what the learner's ranks return while everything else goes on.

        Raises:
            LearnerLost: a rank died or stalled, or what it returned is gone.
            ObjectLostError: an argument was gone; the call was not made.
        """
        values: dict[ObjectRef, Any] = {}
        errors: list[Exception] = []
        awaited = refs if self._learner_started else refs + self._learner.joined
        for ref in awaited:
            self._calls.add(
                ref,
                partial(values.__setitem__, ref),
                errors.append,
                starting=not self._learner_started,
            )
        while len(values) < len(awaited) and not errors:
            self._wait()
        if not errors:
            self._learner_started = True
            return [values[ref] for ref in refs]
        # Of several ranks one may have got the argument that another could not.
        if is_lost_object(errors[0]) and len(awaited) == 1:
            raise errors[0]
        raise LearnerLost(str(errors[0])) from errors[0]

    def _wait(self) -> None:
        self._calls.wait()
        self._rollouts.tick()
        self._rewards.tick()

    def _dispatch(self) -> None:
        while self._queue and self._rollouts.idle:
            task = self._queue[0]
            current = next((w for w in self._rollouts.idle if w.version == task.version), None)
            if current is None:
                self._load(self._rollouts.idle.popleft(), task.version)
                continue
            self._queue.popleft()
            self._rollouts.idle.remove(current)
            trajectory, images, seconds = current.actor.rollout.options(num_returns=3).remote(task)
            done = partial(self._rolled_out, task, current, trajectory, images)
            self._calls.add(seconds, done, partial(self._rollout_lost, task, current))

    def _load(self, worker: Worker, version: int) -> None:
        if version not in self._versions:
            raise LearnerLost(f"weights version {version} are gone")
        buffer, checksum = self._versions[version]

        def confirmed(found: int) -> None:
            if found != checksum:
                raise TrainingError(
                    f"a rollout worker holds other weights than version {version}: {found:08x}"
                )
            worker.version = version
            self._rollouts.release(worker)
            self._dispatch()

        def lost(error: Exception) -> None:
            if is_lost_object(error):
                self._rollouts.release(worker)
                raise LearnerLost(f"weights version {version} are gone with their node")
            self._rollouts.evict(worker, error)

        self._calls.add(worker.actor.load.remote(buffer), confirmed, lost)

    def _rolled_out(
        self, task: GroupTask, worker: Worker, trajectory: ObjectRef, images: ObjectRef, seconds: float
    ) -> None:
        self._seconds[0] += seconds
        self._rollouts.release(worker)
        if task in self._wanted and task not in self._made:
            self._made[task] = trajectory, images
            self._to_score.append(task)
            self._dispatch_scores()
        self._dispatch()

    def _rollout_lost(self, task: GroupTask, worker: Worker, error: Exception) -> None:
        self._rollouts.evict(worker, error)
        self._make_again(task, error)

    def _dispatch_scores(self) -> None:
        while self._to_score and self._rewards.idle:
            task, worker = self._to_score.popleft(), self._rewards.idle.popleft()
            if task not in self._made:
                self._rewards.idle.append(worker)
                continue
            scores = worker.actor.score.remote(self._made[task][1], task.prompt)
            self._calls.add(
                scores,
                partial(self._score, task, worker, scores),
                partial(self._score_lost, task, worker),
            )

    def _score(self, task: GroupTask, worker: Worker, ref: ObjectRef, scores: Scores) -> None:
        self._seconds[1] += scores.seconds
        self._rewards.release(worker)
        if task in self._made:
            self._scored[task] = ref
        self._dispatch_scores()

    def _score_lost(self, task: GroupTask, worker: Worker, error: Exception) -> None:
        if is_lost_object(error):
            self._rewards.release(worker)
            self._make_again(task, error)
            return
        self._rewards.evict(worker, error)
        self._count_loss(task, error)
        if task in self._made:
            self._to_score.appendleft(task)

    def _make_again(self, task: GroupTask, error: Exception) -> None:
        self._made.pop(task, None)
        self._scored.pop(task, None)
        if task not in self._wanted:
            return
        self._count_loss(task, error)
        self._queue.appendleft(task)
        self._dispatch()

    def _count_loss(self, task: GroupTask, error: Exception) -> None:
        self._losses[task] += 1
        if self._losses[task] > MAX_REMAKES:
            raise TrainingError(
                f"iteration {task.iteration}, group {task.group} ({task.prompt.text!r}) was lost "
                f"{self._losses[task]} times, perhaps it kills its worker; the last: {str(error).splitlines()[0]}"
            )
