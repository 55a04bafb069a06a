"""The learner's data-parallel processes: each holds all weights and takes a share of every group's transitions."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist

from sdr1.base.errors import LearnerLost

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ranks:
    """This process among its peers; the default is one that has none."""

    rank: int = 0
    size: int = 1

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over the ranks, in place; every rank ends with the same bits.

        All ranks call it with equal shapes, in the same order. For a fixed number of ranks the order of addition, and
        so the result, is fixed too.

        Raises:
            LearnerLost: a peer died or does not answer.
        """
        if self.size == 1:
            return
        try:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()
        except RuntimeError as error:
            raise LearnerLost(
                f"learner rank {self.rank}: a peer is gone: {str(error).splitlines()[0]}"
            ) from error


ALONE = Ranks()


@dataclass(frozen=True)
class Meeting:
    """Where the ranks find each other."""

    host: str
    """Rank 0's address; loopback when all ranks are on one node."""
    port: int
    size: int


def open_meeting(host: str, size: int, timeout: float) -> tuple[Meeting, dist.TCPStore]:
    """Rank 0's store on a free port of `host` and of no other address; it lives as long as the second value.

    torch would listen on all interfaces if it made the socket itself.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        host, port, size, True, timedelta(seconds=timeout), False, master_listen_fd=listener.detach()
    )
    return Meeting(host, port, size), store


def join(
    meeting: Meeting, rank: int, host: str, device: str, timeout: float, store: dist.TCPStore | None = None
) -> Ranks:
    """Take part as `rank`; gloo on the CPU listens on `host` alone, NCCL on the interface that it finds.

    Raises:
        LearnerLost: the peers did not come.
    """
    limit = timedelta(seconds=timeout)
    try:
        store = store or dist.TCPStore(meeting.host, meeting.port, meeting.size, False, limit, False)
        options, gloo = None, cast(Any, dist.ProcessGroupGloo)
        if not device.startswith("cuda"):
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname=host)]
            options._timeout = limit
        dist.init_process_group(
            "gloo" if options else "nccl",
            store=store, rank=rank, world_size=meeting.size, timeout=limit, pg_options=options,
        )  # fmt: skip
    except RuntimeError as error:
        raise LearnerLost(
            f"learner rank {rank}: no meeting with its peers: {str(error).splitlines()[0]}"
        ) from error
    return Ranks(rank, meeting.size)
