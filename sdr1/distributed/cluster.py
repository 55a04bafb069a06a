"""Joining a Ray cluster, or starting one on this machine for the length of a block."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from sdr1.base.errors import TrainingError, UserError, reason

_PATIENCE = 10.0
"""Seconds in which the machine of an address has to answer."""


@contextmanager
def joined(address: str | None, cores: int) -> Iterator[None]:
    """A Ray cluster: that at `address` or RAY_ADDRESS, else a local one of at least `cores` that ends with the block.

    Inside another such block it is that block's.

    Raises:
        UserError: no cluster answers, or none can be started here.
        TrainingError: the machine is too busy to start one in time.
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
    except Exception as error:
        ray.shutdown()
        if joins:
            raise _unreachable(joins, error) from error
        # A node that takes longer than Ray allows it ends in a bare one.
        if type(error) is Exception:
            raise TrainingError(
                f"Ray did not start on this machine ({reason(error)}): end what else runs here and start again, or use "
                "--local"
            ) from error
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
