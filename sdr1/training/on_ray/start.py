"""Where a run meets its cluster: it joins or starts one, and says what is missing there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from sdr1.base.records import LearnerState
from sdr1.config.training import Config
from sdr1.config.workers import bounds
from sdr1.distributed.cluster import joined
from sdr1.training.on_ray.executor import RayExecutor

_log = logging.getLogger("sdr1")


def cores(config: Config) -> int:
    """CPUs that keep every actor of a run busy."""
    return config.run.threads * (config.learner.ranks + bounds(config.rollout.workers).max)


@contextmanager
def ray_executor(
    config: Config, address: str | None
) -> Iterator[Callable[[LearnerState | None], RayExecutor]]:
    """The cluster at `address` or RAY_ADDRESS, else a local one that ends with the run: makes a RayExecutor there that
    starts from a state.

    Raises:
        UserError: no cluster answers, or none can be started here.
    """
    if config.run.storage is None:
        warn_of_a_short_life(config.run.directory)
    size = bounds(config.rollout.workers)
    ranks = config.learner.ranks
    needed = config.run.threads * (ranks + size.min)
    with joined(address, cores(config)):
        available = ray.cluster_resources().get("CPU", 0)
        if available < needed:
            # Not an error: an autoscaler may bring them.
            _log.warning(
                "rollout.workers: %d and learner.ranks: %d need %d CPUs, the cluster has %g now; waiting for more nodes",
                size.min, ranks, needed, available,
            )  # fmt: skip
        yield lambda state: RayExecutor(config, state)


def warn_of_a_short_life(directory: Path) -> None:
    """A job's relative paths lie where Ray unpacked its files: they go with the cluster, and no other job sees them."""
    if "working_dir_files" in directory.resolve().parts:
        _log.warning(
            "run.directory: %s is inside Ray's copy of the job's files and goes with it; to resume, set run.storage, or "
            "give an absolute path that outlives the cluster",
            directory,
        )
