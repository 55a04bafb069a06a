"""CPU seconds of an image trained on: Ray with one actor of each kind over one process, all of its processes counted."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from benchmarks.common import report
from sdr1.config.files import load
from sdr1.config.training import Config
from sdr1.prompts import stream as prompts
from sdr1.training import loop
from sdr1.training.local import LocalExecutor
from sdr1.training.on_ray.start import ray_executor

RUNS = 5
ITERATIONS = 3
"""The first one is not counted: processes start and caches fill."""


def cpu_seconds() -> float:
    """Of this process and all that it has started, Ray's own ones too."""
    total = 0.0
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class Meter:
    """Observer: CPU seconds at the end of every iteration."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def accumulated(self, task):
        pass

    def iteration(self, iteration, metrics, tasks, executor):
        self.at.append(cpu_seconds())


def measure(config: Config, run: Callable[[Meter], None]) -> float:
    meter = Meter()
    run(meter)
    images = (config.iterations - 1) * config.prompts.per_iteration * config.rollout.group_size
    return (meter.at[-1] - meter.at[0]) / images


def main() -> None:
    config = load("configs/sandbox.yaml", [f"iterations={ITERATIONS}", "tracking.enabled=false"])
    stream = prompts.load(config)

    def in_process(meter: Meter) -> None:
        loop.run(config, stream, LocalExecutor(config), [meter])

    def on_ray(meter: Meter) -> None:
        with ray_executor(config, None) as executor_from:
            executor = executor_from(None)
            loop.run(config, stream, executor, [meter])

    pairs = [(measure(config, on_ray), measure(config, in_process)) for _ in range(RUNS)]
    report("ray_overhead", "CPU seconds an image on Ray over CPU seconds an image in one process", pairs)


if __name__ == "__main__":
    main()
