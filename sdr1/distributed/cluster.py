"""Joining a Ray cluster, or starting one on this machine for the length of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from sdr1.config import Config
from sdr1.distributed.executor import RayExecutor
from sdr1.errors import UserError


@contextmanager
def ray_executor(config: Config, address: str | None) -> Iterator[RayExecutor]:
    """A RayExecutor on the cluster at `address` or RAY_ADDRESS, else on a local one that ends with the run.

    Raises:
        UserError: no cluster answers, or it can never hold the actors asked for.
    """
    needed = config.run.threads * (1 + config.rollout.workers + config.reward.workers)
    joins = address or os.environ.get("RAY_ADDRESS")
    # A machine with fewer cores than actors runs them all the same, only slower.
    size = {} if joins else {"num_cpus": max(needed, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **size)
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"--ray-address: {joins!r}: no Ray cluster answers there; start one or leave it out"
        ) from error
    try:
        available = ray.cluster_resources().get("CPU", 0)
        if available < needed:
            raise UserError(
                f"rollout.workers: {config.rollout.workers}: the actors need {needed} CPUs, the cluster has "
                f"{available:.0f}; add nodes or ask for fewer workers"
            )
        yield RayExecutor(config)
    finally:
        ray.shutdown()
