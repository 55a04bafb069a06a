"""128 rollout actors that only sleep: the driver's time for a group, its memory, and 20 of them dying at once."""

from __future__ import annotations

import time

import psutil
import ray

from benchmarks.common import report
from benchmarks.suite.schedule import stubs
from sdr1.base.records import Prompt
from sdr1.config.training import validate
from sdr1.prompts.stream import PromptStream
from sdr1.training import loop
from sdr1.training.on_ray.executor import RayExecutor

WORKERS, GROUP_SECONDS, GROUPS, ITERATIONS, VICTIMS = 128, 1.0, 512, 8, 20
"""The first iteration also starts the workers and the last sees the deaths: six are measured."""


class Watch:
    """Observer: processor and wall time of each iteration, and the deaths in the last one."""

    def __init__(self, executor: RayExecutor) -> None:
        self._executor, self._processor, self._wall = executor, time.process_time(), time.perf_counter()
        self.processor: list[float] = []
        self.wall: list[float] = []
        self.struck: float | None = None
        self.whole_again: float | None = None

    def accumulated(self, task) -> None:
        if task.iteration == ITERATIONS - 1 and task.group == GROUPS // 4:
            workers = [
                p for p in psutil.Process().children(recursive=True) if "Rollout" in " ".join(p.cmdline())
            ]
            for worker in workers[:VICTIMS]:
                worker.kill()
            self.struck = time.perf_counter()

    def iteration(self, *_) -> None:
        processor, wall = time.process_time(), time.perf_counter()
        self.processor.append(processor - self._processor)
        self.wall.append(wall - self._wall)
        self._processor, self._wall = processor, wall

    def wait_until_whole(self) -> None:
        """The replacements join after the iteration; nobody waits for them there."""
        while self._executor._rollouts.in_service < WORKERS:
            self._executor._wait()
        self.whole_again = time.perf_counter()


def main() -> None:
    ray.init(address="local", num_cpus=WORKERS + 2, include_dashboard=False, log_to_driver=False)
    config = validate(
        {
            "iterations": ITERATIONS,
            "prompts": {"per_iteration": GROUPS},
            "rollout": {"workers": WORKERS, "group_size": 2},
        }
    )
    before = psutil.Process().memory_info().rss
    executor = RayExecutor(config, roles=stubs(GROUP_SECONDS, 0.0))
    watch = Watch(executor)
    while executor._rollouts.in_service < WORKERS:
        executor._wait()
    loop.run(config, PromptStream([[Prompt("a red circle", "safe")]], config), executor, [watch])
    watch.wait_until_whole()
    steady = slice(1, ITERATIONS - 1)
    ideal = GROUPS * GROUP_SECONDS / WORKERS
    report(
        "fleet128",
        "the driver's processor seconds for a group over the seconds of a group",
        [(seconds / GROUPS, GROUP_SECONDS) for seconds in watch.processor[steady]],
        workers=WORKERS,
        ideal_over_wall=[round(ideal / seconds, 3) for seconds in watch.wall[steady]],
        driver_bytes=psutil.Process().memory_info().rss,
        driver_bytes_of_the_fleet=psutil.Process().memory_info().rss - before,
        died_at_once=VICTIMS,
        iteration_with_deaths_over_without=watch.wall[-1] / min(watch.wall[steady]),
        seconds_until_all_in_service=watch.whole_again - watch.struck,
    )


if __name__ == "__main__":
    main()
