"""How close the schedule comes to its ideal, with actors that only sleep: workers x cost ratio x staleness.

The ideal time of a group is max(rollout / workers, learner); the serial schedule makes all groups, then learns from all.
"""

from __future__ import annotations

import json
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import ray

from sdr1.base.files import write_text
from sdr1.base.records import (
    GroupReport,
    LearnerState,
    Prompt,
    Scores,
    UpdateReport,
    Weights,
)
from sdr1.config.training import Config, validate
from sdr1.prompts.stream import PromptStream
from sdr1.training import loop
from sdr1.training.on_ray.executor import RayExecutor, Roles
from sdr1.training.on_ray.work import State

UNIT = 0.5
"""Seconds of the cheaper role's work on one group; the sandbox's take 1 s and Stable Diffusion's more."""
UNITS = {0: 128, 1: 48}
"""Work of the learner in an iteration, in units, by staleness. On-policy no schedule can hide the first group's rollout
and the last one's learning: at 4:1 that is 1/32 of the iteration; with staleness there is nothing to hide."""
PAIRS, GROUPS_OF_A_PAIR = 5, 48
_BUFFER, _CHECKSUM = np.zeros(1024, np.uint8), 0
_EXPERIENCE, _IMAGES = np.zeros(1), np.zeros(1)


def stubs(rollout_seconds: float, learner_seconds: float) -> Roles:
    class Stub:
        def __init__(self, *_: object) -> None:
            pass

        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    class Sampler(Stub):
        def load(self, weights):
            return _CHECKSUM

        def rollout(self, task):
            time.sleep(rollout_seconds)
            return _EXPERIENCE, _IMAGES, rollout_seconds

    class Reward(Stub):
        def score(self, images, prompt):
            return Scores(np.zeros(2, np.float32), None, 0.0)

    class Learner(Stub):
        updates = 0

        def __init__(self, _config, _state):
            pass

        def accumulate(self, task, experience, scores):
            time.sleep(learner_seconds)
            return GroupReport(task, 0.0, 0.0, None, 0.0, learner_seconds)

        def step(self):
            self.updates += 1
            return UpdateReport(self.updates, 0.0, 0.0, 0.0)

        def publish(self, version):
            return Weights(version, _BUFFER, _CHECKSUM), _CHECKSUM

        def state(self, iteration):
            return LearnerState(self.updates, (Weights(iteration, _BUFFER, _CHECKSUM),), None, {})

    return Roles(Sampler, Reward, Learner)


class Serial(RayExecutor):
    """Phase after phase: no group is learned from before all are made."""

    def accumulate(self, task):
        unscored = (State.WAITING, State.ROLLING_OUT, State.MADE, State.SCORING)
        while any(group.state in unscored for group in self._groups.values()):
            self._wait()
        super().accumulate(task)


class Clock:
    """Seconds of the last iteration."""

    def __init__(self):
        self.end = time.perf_counter()

    def accumulated(self, task):
        pass

    def iteration(self, iteration, metrics, tasks, executor):
        self.begin, self.end = self.end, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def config_of(workers: int, staleness: int, groups: int, seed: int = 0) -> Config:
    return validate(
        {
            "seed": seed,
            # With staleness the first iteration fills the pipeline.
            "iterations": 1 + staleness,
            "prompts": {"per_iteration": groups},
            "rollout": {"workers": workers, "max_staleness": staleness, "group_size": 2},
        }
    )


def measure(
    workers: int, rollout: int, learner: int, staleness: int, groups: int, kind: type = RayExecutor
) -> float:
    """Seconds of the last iteration, with workers that have started and done something before."""
    config, prompt = config_of(workers, staleness, groups), Prompt("a red circle", "safe")
    executor = kind(config, roles=stubs(rollout * UNIT, learner * UNIT))
    while executor._rollouts.in_service < workers:
        executor._wait()
    warm = config_of(workers, 0, workers, seed=1)
    loop.run(warm, PromptStream([[prompt]], warm), executor, [])
    clock = Clock()
    loop.run(config, PromptStream([[prompt]], config), executor, [clock])
    for worker in executor._rollouts._workers | executor._rewards._workers:
        worker.actor.kill()
    executor._learner.kill()
    return clock.seconds


def main() -> None:
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    rows = []
    for staleness in (0, 1):
        for rollout, learner in ((1, 4), (1, 1), (4, 1)):
            for workers in (1, 2, 4, 8):
                groups = UNITS[staleness] // learner
                ideal = groups * max(rollout / workers, learner) * UNIT
                over_ideal = ideal / measure(workers, rollout, learner, staleness, groups)
                row = {"workers": workers, "cost_ratio": f"{rollout}:{learner}", "staleness": staleness}
                row["groups"] = groups
                rows.append(row | {"over_ideal": round(over_ideal, 4)})
                print(rows[-1], flush=True)
    equal = partial(measure, 1, 1, 1, 0, GROUPS_OF_A_PAIR)
    pairs = [(equal(Serial), equal()) for _ in range(PAIRS)]
    gain = statistics.median(serial / streamed for serial, streamed in pairs)
    result = {
        "name": "schedule",
        "rows": rows,
        "streamed_over_serial": gain,
        "pairs": pairs,
        "unit_seconds": UNIT,
    }
    write_text(Path("outputs/bench/schedule.json"), json.dumps(result, indent=2) + "\n")
    print(
        f"schedule: streamed over serial {gain:.2f}, worst over ideal {min(r['over_ideal'] for r in rows):.3f}"
    )


if __name__ == "__main__":
    main()
