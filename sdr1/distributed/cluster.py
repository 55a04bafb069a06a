"""Joining a Ray cluster, or starting one on this machine for the length of a run."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from sdr1.base.errors import UserError, reason
from sdr1.base.records import LearnerState
from sdr1.config.training import Config, bounds
from sdr1.training.on_ray.executor import RayExecutor

_PATIENCE = 10.0
"""Seconds in which the machine of an address has to answer."""
_log = logging.getLogger("sdr1")


@contextmanager
def joined(address: str | None, cores: int) -> Iterator[None]:
    """A Ray cluster: that at `address` or RAY_ADDRESS, else a local one of at least `cores` that ends with the block.

    Inside another such block it is that block's.

    Raises:
        UserError: no cluster answers, or none can be started here.
    """
    if ray.is_initialized():
        yield
        return
    joins = address or os.environ.get("RAY_ADDRESS")
    if joins:
        _probe(joins)
    # A machine with fewer cores than actors runs them all the same, only slower.
    own = {} if joins else {"num_cpus": max(cores, os.cpu_count() or 1), "include_dashboard": False}
    try:
        # "local": without it Ray would join whatever cluster was last started on this machine.
        ray.init(address=joins or "local", logging_level=logging.WARNING, log_to_driver=False, **own)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()
        if joins:
            raise _unreachable(joins, error) from error
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        raise UserError(
            f"TMPDIR: {folder}: Ray cannot start there ({reason(error)}); set it to a short path with room"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raise UserError when nothing listens there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, OverflowError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> UserError:
    shown = address if len(address) < 100 else f"{address[:100]}..."
    return UserError(
        f"--ray-address: {shown!r}: no Ray cluster answers there ({reason(error)}); start one, or leave "
        "--ray-address and RAY_ADDRESS out"
    )


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
            "run.directory: %s is inside Ray's copy of the job's files and goes with it; to resume, give an absolute "
            "path that outlives the cluster",
            directory,
        )
