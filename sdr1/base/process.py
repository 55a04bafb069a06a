"""What every process that computes does first: threads, allocator, determinism."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import resource
import sys
import threading
import time
from multiprocessing.connection import Connection, wait

import torch
from tqdm import tqdm

from sdr1.base.errors import Terminated, UserError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4

stop_requested = threading.Event()
"""Set by SIGTERM. A handler that raised would surface anywhere, inside Ray's C++ too; so waits look at this."""


def raise_if_stopped() -> None:
    """Raise `Terminated` once the process was asked to stop."""
    if stop_requested.is_set():
        raise Terminated("SIGTERM")


def pause(seconds: float) -> None:
    """Sleep; raise `Terminated` as soon as the process is asked to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        raise_if_stopped()
        time.sleep(min(left, 0.2))


def end_with_parent(*lifelines: Connection) -> None:
    """In a child of `multiprocessing`: end with the parent, also when it was killed in the middle of the child's work, or
    when it closes its end of a lifeline."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Its own lock is one between processes: left behind by a child that ends so, and Python warns of it.
    tqdm.set_lock(threading.RLock())

    def end() -> None:
        wait([parent.sentinel, *lifelines])
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()


def peak_memory(device: str = "cpu") -> int:
    """The most memory that this process ever held, in bytes; on a GPU that of its tensors there."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prepare_process(threads: int) -> None:
    """Fix the number of torch threads and keep freed memory in the process.

    glibc returns large blocks to the kernel at every free; the page faults of taking them back cost small models
    on the CPU a factor of 2 to 5 in elementwise operations.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(_M_TOP_PAD, 256 * 2**20)


def require_device(field: str, device: str) -> None:
    """Raise UserError when a config field asks for a device that this process cannot see."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", device):
        raise UserError(f"{field}: {device!r}: no such device; use cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"{field}: {device!r}: no CUDA device is visible here; set {field}=cpu")
    number = int(device.partition(":")[2] or 0)
    if device != "cpu" and number >= (count := torch.cuda.device_count()):
        raise UserError(
            f"{field}: {device!r}: {count} CUDA devices are visible here; use cuda:0 to cuda:{count - 1}"
        )
