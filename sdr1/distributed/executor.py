"""The executor of a Ray cluster: groups stream rollout -> reward -> learner as references, as soon as each is ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from ray import ObjectRef

from sdr1.config import Config
from sdr1.distributed.actors import LearnerActor, RewardActor, RolloutActor
from sdr1.errors import TrainingError
from sdr1.types import GroupReport, GroupTask, Scores, UpdateReport, Weights


class RayExecutor:
    """Keeps every rollout worker busy; a worker gets work only for a weights version that it has confirmed."""

    def __init__(self, config: Config) -> None:
        def place(role: type, device: str, **options: Any) -> Any:
            gpus = 1 if device.startswith("cuda") else 0
            return (
                ray.remote(role).options(num_cpus=config.run.threads, num_gpus=gpus, **options).remote(config)
            )

        self._learner = place(LearnerActor, config.learner.device)
        self._rollouts = [place(RolloutActor, config.rollout.device) for _ in range(config.rollout.workers)]
        self._rewards = deque(place(RewardActor, config.reward.device) for _ in range(config.reward.workers))
        self._running: dict[ObjectRef, Callable[[ObjectRef], None]] = {}
        self._idle: deque[Any] = deque()
        self._queue: deque[GroupTask] = deque()
        self._made: dict[GroupTask, tuple[ObjectRef, ObjectRef]] = {}
        self._scored: dict[GroupTask, ObjectRef] = {}
        self._reports: list[ObjectRef] = []
        self._seconds = [0.0, 0.0]
        self._published: tuple[int, ObjectRef, ObjectRef] | None = None

    def publish(self, version: int) -> None:
        buffer, checksum = self._learner.publish.options(num_returns=2).remote(version)
        self._published = version, buffer, checksum
        self._idle.clear()
        for worker in self._rollouts:
            self._running[worker.load.remote(buffer)] = partial(self._confirm, worker)

    def submit(self, tasks: Sequence[GroupTask]) -> None:
        self._made, self._scored = {}, {}
        self._queue.extend(tasks)
        self._dispatch()

    def accumulate(self, task: GroupTask) -> None:
        while task not in self._scored:
            self._advance()
        trajectory, _ = self._made[task]
        self._reports.append(self._learner.accumulate.remote(task, trajectory, self._scored[task]))

    def step(self) -> tuple[list[GroupReport], UpdateReport]:
        reports, self._reports = self._reports, []
        update = self._learner.step.remote()
        while ray.wait([update], timeout=0)[0] == []:
            self._advance(update)
        return _get(reports), _get(update)

    def drain_seconds(self) -> tuple[float, float]:
        (rollout, reward), self._seconds = self._seconds, [0.0, 0.0]
        return rollout, reward

    def images(self, task: GroupTask) -> np.ndarray:
        return _get(self._made[task][1])

    def weights(self) -> Weights:
        assert self._published is not None, "weights are published before the first task"
        version, buffer, checksum = self._published
        return Weights(version, _get(buffer), _get(checksum))

    def _advance(self, *also: ObjectRef) -> None:
        """Wait for the next event of any worker and act on it."""
        (ref, *_), _ = ray.wait([*self._running, *also], num_returns=1)
        if ref in self._running:
            self._running.pop(ref)(ref)

    def _confirm(self, worker: Any, loaded: ObjectRef) -> None:
        assert self._published is not None
        version, _, checksum = self._published
        if _get(loaded) != _get(checksum):
            raise TrainingError(
                f"a rollout worker holds other weights than version {version}: its checksum differs"
            )
        self._idle.append(worker)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._queue and self._idle:
            task, worker = self._queue.popleft(), self._idle.popleft()
            trajectory, images, seconds = worker.rollout.options(num_returns=3).remote(task)
            self._made[task] = trajectory, images
            self._running[seconds] = partial(self._rolled_out, task, worker)

    def _rolled_out(self, task: GroupTask, worker: Any, seconds: ObjectRef) -> None:
        self._seconds[0] += _get(seconds)
        self._idle.append(worker)
        self._dispatch()
        self._rewards.rotate(-1)
        scores = self._rewards[0].score.remote(self._made[task][1], task.prompt)
        self._running[scores] = partial(self._score, task)

    def _score(self, task: GroupTask, ref: ObjectRef) -> None:
        scores: Scores = _get(ref)
        self._seconds[1] += scores.seconds
        self._scored[task] = ref


def _get(refs: Any) -> Any:
    """Fetch; what an actor raised on purpose is raised here as itself, not wrapped in Ray's error."""
    try:
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if error.cause is not None else error from None
