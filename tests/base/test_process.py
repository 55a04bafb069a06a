"""Processes of a command: none outlives it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from sdr1.base.process import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""

STOPS = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from sdr1.base.process import end_with_parent

def draw(at_work):
    from tqdm import tqdm

    bar = tqdm(disable=True)
    at_work.touch()
    time.sleep(600)

if __name__ == "__main__":
    theirs, ours = get_context("spawn").Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=end_with_parent, initargs=(theirs,)
    )
    at_work = Path(sys.argv[1])
    pool.submit(draw, at_work)
    while not at_work.exists():
        time.sleep(0.05)
    ours.close()
    pool.shutdown(wait=False, cancel_futures=True)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_child_at_work_ends_with_its_parent(end, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    getattr(parent, end)()
    parent.wait(60)
    for _ in range(600):
        if not alive(child):
            return
        time.sleep(0.1)
    os.kill(child, 9)
    raise AssertionError("the child lives on")


def test_a_child_that_is_stopped_in_its_work_leaves_no_lock_behind(tmp_path):
    script = tmp_path / "stops.py"
    script.write_text(STOPS)
    command = [sys.executable, str(script), str(tmp_path / "at-work")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
