"""The executor of a Ray cluster: groups stream rollout -> reward -> learner as references, as soon as each is ready.

Any worker may die at any time. A group that is lost is made again from its seed; a learner that is lost starts again
from the last snapshot, and the loop makes the iterations since then again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray

from sdr1.base.errors import LearnerLost, TrainingError
from sdr1.base.process import pause
from sdr1.base.records import GroupReport, GroupTask, LearnerState, Scores, UpdateReport, Usage, Weights
from sdr1.config.training import Config
from sdr1.config.workers import bounds
from sdr1.distributed.actor import Ref, T
from sdr1.distributed.calls import Calls, check_losses, first_line, get, is_lost_object, raised_on_purpose
from sdr1.distributed.fleet import Fleet, Worker, backoff
from sdr1.distributed.placement import H, Placement, Waiting, least_cpus
from sdr1.training.checkpoint import newest
from sdr1.training.on_ray.actors import LearnerActor, RewardActor, RolloutActor
from sdr1.training.on_ray.gang import Gang
from sdr1.training.on_ray.handles import LearnerHandle, RewardHandle, RolloutHandle
from sdr1.training.on_ray.meters import Meters
from sdr1.training.on_ray.work import Answer, Group, Published, State

MAX_LEARNER_DEATHS = 6
"""Losses of the learner in a row, without one update between them, that stop the run."""
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
        self._config = config
        self._calls = Calls(config.run.task_timeout, config.run.start_timeout)
        self._snapshots: deque[Ref[LearnerState]] = deque(maxlen=2)
        self._learner_deaths = 0
        threads, workers = config.run.threads, config.rollout.workers
        self._place_learner = self._placement(LearnerHandle, roles.learner, config.learner.device, threads)
        self._waiting = Waiting("the learner", self._place_learner)
        self._start_learner(state)
        # Scoring is a hundredth of a group's work; a whole core for it would starve the other roles.
        place = self._placement(RewardHandle, roles.reward, config.reward.device, least_cpus())
        size = bounds(config.reward.workers)
        self._rewards = Fleet("reward workers", place, size, self._calls, self._dispatch_scores)
        sampler = self._placement(RolloutHandle, roles.rollout, config.rollout.device, threads)
        self._rollouts = Fleet("rollout workers", sampler, bounds(workers), self._calls, self._dispatch)
        self._versions: dict[int, Published] = {}
        self._groups: dict[GroupTask, Group] = {}
        """Of the iterations under way and the latest one, in the order in which the learner takes them."""
        self._handed: list[tuple[Group, Answer[GroupReport | None]]] = []
        """With the learner, in order."""
        self._reports: list[GroupReport] = []
        """Of its groups since its last step."""
        self._seconds = [0.0, 0.0]
        self._meters = Meters(config)

    def publish(self, version: int) -> None:
        weights, checksum = self._learner.first.publish(version)
        found = self._learned([checksum, *[rank.checksum() for rank in self._learner.others]])
        if len(set(found)) > 1:
            raise TrainingError(
                f"learner ranks hold different weights after update {version}: they drifted apart"
            )
        self._versions[version] = Published(weights, found[0])
        self._meters.published()
        for old in [v for v in self._versions if v < version - self._config.rollout.max_staleness]:
            del self._versions[old]
        self._dispatch()

    def submit(self, tasks: Sequence[GroupTask]) -> None:
        oldest = tasks[0].iteration - self._config.rollout.max_staleness
        self._groups = {task: group for task, group in self._groups.items() if task.iteration >= oldest}
        self._groups |= {task: Group(task) for task in tasks}
        self._dispatch()

    def accumulate(self, task: GroupTask) -> None:
        self._hand(self._groups[task])
        # One waits at the learner while it works on another: it never waits for the driver.
        self._settle(2)

    def _hand(self, group: Group) -> None:
        while group.state is not State.SCORED:
            # A learner that died has its groups made again, so nothing of this iteration is worth waiting for.
            if any(answer.error is not None for _, answer in self._handed):
                self._settle(0)
            self._wait()
        made, scores = group.made, group.scores
        assert made is not None
        assert scores is not None
        refs = self._learner.call(lambda rank: rank.accumulate(group.task, made.experience, scores))
        group.state = State.HANDED
        self._handed.append((group, self._learner_call(refs)))

    def _settle(self, most: int) -> None:
        """Wait until at most so many groups are with the learner.

        When a group's objects were lost on their way, the learner refuses those behind it, and all are handed again.
        """
        while len(self._handed) > most:
            (first, answer), *behind = self._handed
            try:
                report = self._await(answer)[0]
            except ray.exceptions.ObjectLostError as error:
                for group, refused in behind:
                    with suppress(ray.exceptions.ObjectLostError):
                        self._await(refused)
                    group.state = State.SCORED
                self._make_again(first, error)
                self._handed = []
                for group in (first, *(group for group, _ in behind)):
                    self._hand(group)
            else:
                assert report is not None, "nothing before it was lost"
                first.state = State.DONE
                self._reports.append(report)
                del self._handed[0]

    def step(self) -> tuple[list[GroupReport], UpdateReport]:
        self._settle(0)
        reports, self._reports = self._reports, []
        update = self._learned(self._learner.call(LearnerHandle.step))[0]
        self._learner_deaths = 0
        self._meters.stepped(reports, update)
        return reports, update

    def usage(self) -> Usage:
        (rollout, reward), self._seconds = self._seconds, [0.0, 0.0]
        found = Usage(rollout, reward, max(1, self._rollouts.in_service), max(1, self._rewards.in_service))
        self._meters.used(found)
        return found

    def images(self, task: GroupTask) -> np.ndarray | None:
        group = self._groups.get(task)
        if group is None or group.made is None:
            return None
        try:
            return ray.get(group.made.images, timeout=self._config.run.task_timeout)
        except ray.exceptions.RayError:
            # Only pictures to look at: the group was learned from before its node went away.
            return None

    def weights(self) -> Weights:
        version = max(self._versions)
        if self._config.learner.ema_decay:
            return self._learned([self._learner.first.result(version)])[0]
        return self._learned([self._versions[version].weights])[0]

    def snapshot(self, iteration: int) -> Callable[[], LearnerState]:
        ref = self._learner.first.state(iteration)
        self._snapshots.append(ref)
        return partial(get, ref)

    def recover(self, reason: str) -> int:
        self._learner.kill()
        self._meters.learner_lost()
        self._versions, self._groups, self._handed, self._reports = {}, {}, [], []
        state = self._last_state()
        iteration = state.iteration if state else 0
        _log.warning("the learner was lost (%s); it goes on from iteration %d", reason, iteration)
        pause(backoff(self._learner_deaths - 1))
        self._start_learner(state)
        return iteration

    def _last_state(self) -> LearnerState | None:
        """The newest snapshot that outlived the learner, else the newest checkpoint; None before the first."""
        while self._snapshots:
            try:
                return ray.get(self._snapshots[-1], timeout=self._config.run.task_timeout)
            except ray.exceptions.RayError:
                self._snapshots.pop()
        checkpoint = newest(self._config.run.directory)
        return checkpoint.state if checkpoint else None

    def _placement(self, handle: Callable[[Any], H], role: type, device: str, cpus: float) -> Placement[H]:
        gpus = self._config.gpu_share if device.startswith("cuda") else 0
        return Placement(handle, role, (self._config,), cpus, gpus)

    def _start_learner(self, state: LearnerState | None) -> None:
        # One copy for all ranks of a node.
        shared = None if state is None else ray.put(state)
        self._learner = Gang(partial(self._place_learner, shared), self._config.learner.ranks)
        self._learner_started = False

    def _learned(self, refs: list[Ref[T]]) -> list[T]:
        """What a call of the learner's ranks returns."""
        return self._await(self._learner_call(refs))

    def _learner_call(self, refs: list[Ref[T]]) -> Answer[T]:
        answer: Answer[T] = Answer()
        values: dict[Ref[Any], Any] = {}
        awaited: list[Ref[Any]] = [*refs, *([] if self._learner_started else self._learner.joined)]

        def answered(ref: Ref[Any], value: object) -> None:
            values[ref] = value
            if len(values) == len(awaited) and not answer.ended:
                answer.values, answer.ended = [values[ref] for ref in refs], True

        def lost(error: Exception) -> None:
            if not answer.ended:
                answer.error, answer.ended = error, True

        starting: Sequence[LearnerHandle] = () if self._learner_started else self._learner.ranks
        for ref in awaited:
            self._calls.add(ref, partial(answered, ref), lost, starting=starting)
        return answer

    def _await(self, answer: Answer[T]) -> list[T]:
        """Wait for the learner while everything else goes on.

        Raises:
            LearnerLost: a rank died or stalled, or what it returned is gone.
            ObjectLostError: an argument was gone; the call was not made.
            UserError: its constructor said so; another one would say the same.
        """
        while not answer.ended:
            self._wait()
        error = answer.error
        if error is None:
            self._learner_started = True
            return answer.values
        # Of several ranks one may have got the argument that another could not.
        if is_lost_object(error) and self._config.learner.ranks == 1:
            raise error
        raise raised_on_purpose(error) or self._learner_lost(first_line(error)) from error

    def _learner_lost(self, reason: str) -> LearnerLost:
        """The error to raise, as long as there is hope.

        Raises:
            TrainingError: it was lost again and again without one update between.
        """
        self._learner_deaths += 1
        if self._learner_deaths > MAX_LEARNER_DEATHS:
            raise TrainingError(
                f"the learner was lost {self._learner_deaths} times in a row without one update; the last: {reason}"
            )
        return LearnerLost(reason)

    def _wait(self) -> None:
        self._calls.wait()
        self._waiting.tick(int(self._learner_started), 1)
        self._rollouts.tick()
        self._rewards.tick()
        self._meters.tick(self._groups.values(), {"rollout": self._rollouts, "reward": self._rewards})

    def _first(self, state: State) -> Group | None:
        return next((group for group in self._groups.values() if group.state is state), None)

    def _dispatch(self) -> None:
        while self._rollouts.idle and (group := self._first(State.WAITING)):
            published = self._versions.get(group.task.version)
            if published is None:
                raise self._learner_lost(f"weights version {group.task.version} are gone")
            idle = self._rollouts.idle
            worker = next((each for each in idle if each.weights == published.checksum), None)
            if worker is None:
                self._load(idle.popleft(), group.task.version, published)
                continue
            idle.remove(worker)
            group.state = State.ROLLING_OUT
            group.made = worker.actor.rollout(group.task)
            self._calls.add(
                group.made.seconds,
                partial(self._rolled_out, group, worker),
                partial(self._rollout_lost, group, worker),
            )

    def _load(self, worker: Worker[RolloutHandle], version: int, published: Published) -> None:
        def confirmed(found: int) -> None:
            if found != published.checksum:
                raise TrainingError(
                    f"a rollout worker holds other weights than version {version}: {found:016x}"
                )
            worker.weights = found
            self._meters.confirmed()
            self._rollouts.release(worker)
            self._dispatch()

        def lost(error: Exception) -> None:
            if not is_lost_object(error):
                self._rollouts.evict(worker, error)
                return
            self._rollouts.release(worker)
            if self._versions.get(version) is published:
                raise self._learner_lost(f"weights version {version} are gone with their node")
            self._dispatch()

        self._calls.add(worker.actor.load(published.weights), confirmed, lost)

    def _rolled_out(self, group: Group, worker: Worker[RolloutHandle], seconds: float) -> None:
        self._seconds[0] += seconds
        self._rollouts.release(worker)
        group.state = State.MADE
        self._dispatch_scores()
        self._dispatch()

    def _rollout_lost(self, group: Group, worker: Worker[RolloutHandle], error: Exception) -> None:
        self._rollouts.evict(worker, error)
        self._make_again(group, error)

    def _dispatch_scores(self) -> None:
        while self._rewards.idle and (group := self._first(State.MADE)):
            assert group.made is not None
            worker = self._rewards.idle.popleft()
            group.state = State.SCORING
            scores = worker.actor.score(group.made.images, group.task.prompt)
            self._calls.add(
                scores,
                partial(self._score, group, worker, scores),
                partial(self._score_lost, group, worker),
            )

    def _score(self, group: Group, worker: Worker[RewardHandle], ref: Ref[Scores], scores: Scores) -> None:
        self._seconds[1] += scores.seconds
        self._rewards.release(worker)
        group.state, group.scores = State.SCORED, ref
        self._dispatch_scores()

    def _score_lost(self, group: Group, worker: Worker[RewardHandle], error: Exception) -> None:
        if is_lost_object(error):
            self._rewards.release(worker)
            self._make_again(group, error)
            return
        self._rewards.evict(worker, error)
        self._count_loss(group, error)
        group.state = State.MADE

    def _make_again(self, group: Group, error: Exception) -> None:
        self._count_loss(group, error)
        group.state = State.WAITING
        self._dispatch()

    def _count_loss(self, group: Group, error: Exception) -> None:
        group.losses += 1
        task = group.task
        name = f"iteration {task.iteration}, group {task.group} ({task.prompt.text!r})"
        check_losses(name, group.losses, error)
