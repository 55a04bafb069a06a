"""The rehearsal: what it makes of what it sees, where it cannot run, and once the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from ray.dashboard.modules.job.cli import _log_job_status
from ray.job_submission import JobStatus

from sdr1.training.observers import journal
from tests.training.on_ray import rehearsal
from tests.training.on_ray.hosts import Network, Unavailable
from tests.training.on_ray.rehearsal import Failed, Job, Moment, copies, failures

GOOD = {
    "weights_sha256": "ab",
    "weights_sha256_local": "ab",
    "copies_per_version_and_host": {"rollout-1": 1.01},
    "workers_lost": 2,
    "workers_left": 1,
    "groups_made_again": 4,
}


@pytest.fixture
def result(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "RESULT", tmp_path / "rehearsal.json")
    return tmp_path / "rehearsal.json"


def test_it_says_that_it_was_skipped_where_there_can_be_no_hosts(result, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert rehearsal.main() == 0
    assert json.loads(result.read_text()) == {"skipped": "network namespaces need root"}
    assert capsys.readouterr().out == "skipped: network namespaces need root\n"


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"weights_sha256": "cd"}, "not those of the undisturbed run"),
     ({"copies_per_version_and_host": {"rollout-1": 2.02}}, "rollout-1: the weights crossed its link 2.02 times"),
     ({"copies_per_version_and_host": {"rollout-1": 0.3}}, "0.3 times"), ({"workers_lost": 3}, "4 workers were lost"),
     ({"groups_made_again": 19}, "19 groups were made again")],
)  # fmt: skip
def test_what_is_not_as_it_has_to_be_is_said(changes, says):
    assert failures(GOOD, 6) == []
    (said,) = failures({**GOOD, **changes}, 6)
    assert says in said


def test_bytes_are_counted_from_the_row_before_the_first_iteration_to_the_last_ones_row():
    seen = [{"rollout-1": (came, 5)} for came in (7, 1007, 3007, 6007, 6008)]
    job = Job.__new__(Job)
    job.bytes = seen
    assert copies(job, {"rollout-1": (1, 4)}, size=2000) == {"rollout-1": 1.0}


class _Links:
    """Counters that cannot be read the first few times."""

    def __init__(self, fails: int) -> None:
        self._fails = fails

    def bytes(self):
        self._fails -= 1
        if self._fails >= 0:
            raise subprocess.CalledProcessError(1, ["ip"])
        return {"rollout-1": (10, 1)}


class _Hosts:
    """All that they say is how the job is."""

    def __init__(self, status: str) -> None:
        self._status = status

    def run(self, *command: str):
        return subprocess.CompletedProcess(command, 0, stdout=self._status, stderr="")


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A job of 8 iterations that has made three, at 12 images each."""
    monkeypatch.setattr(rehearsal, "ASK_EVERY", 0.2)
    rows = [{"iteration": i, "rollout_workers": min(i, 1) + 1} for i in range(3)]
    (tmp_path / journal.NAME).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def start(fails: int, status: str = "RUNNING") -> Job:
        job = Job(_Links(fails), _Hosts(status), tmp_path, 8)
        job._thread.start()
        jobs.append(job)
        return job

    jobs = []
    yield start
    for job in jobs:
        job._over.set()


def test_counters_that_cannot_be_read_once_are_read_again(watched):
    job = watched(fails=1)
    job.until("three iterations", lambda: len(job.rows) == 3)
    assert job.bytes == [{"rollout-1": (10, 1)}] * 3


def test_counters_that_cannot_be_read_any_more_end_the_rehearsal(watched):
    job = watched(fails=10**9)
    with pytest.raises(Failed, match=r"^three iterations: the bytes on the links can no longer be read$"):
        job.until("three iterations", lambda: len(job.rows) == 3)


def test_a_job_that_ends_before_all_has_happened_names_what_gives_it_time(watched):
    job = watched(fails=0, status="Job 'rehearsal' succeeded")
    with pytest.raises(
        Failed, match=r"^3 rollout workers: the job's 8 iterations .* REHEARSAL_ITERATIONS=16 "
    ):
        job.until("3 rollout workers", lambda: False)


@pytest.mark.parametrize("status", list(JobStatus))
def test_how_a_job_is_comes_from_what_ray_prints(status, capsys):
    client = SimpleNamespace(get_job_info=lambda _: SimpleNamespace(status=status, message="as it was asked"))
    _log_job_status(client, rehearsal.JOB)
    job = Job.__new__(Job)
    job._hosts = _Hosts("".join(capsys.readouterr()))
    assert job.status() == ("RUNNING" if status is JobStatus.PENDING else status)


def test_throughput_is_of_the_time_between_two_events_and_a_stretch_without_an_iteration_has_none(watched):
    job = watched(fails=0)
    job.until("three iterations", lambda: len(job.rows) == 3)
    job._events = [("a", 0.0, 0), ("b", 4.0, 2), ("c", 10.0, 2), ("over", 16.0, 3)]
    assert job.moments() == [
        Moment("a", 0.0, 0, 2, 6.0),
        Moment("b", 4.0, 2, 2, 0.0),
        Moment("c", 10.0, 2, 2, 2.0),
    ]


def test_a_host_may_be_called_by_a_word_of_ip_and_its_bytes_are_counted():
    send = "import socket\nfor _ in range(3): socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(1000), ('{}', 9))"
    try:
        with Network() as network:
            other, host = network.add("other", 100), network.add("up", 100)
            network.cut("up")
            network.mend("up")
            before, end = network.bytes()["up"][0], time.monotonic() + 60
            subprocess.run([*other.enter(), sys.executable, "-c", send.format(host.address)], check=True)
            # Headers of UDP, IP and Ethernet come on top, and the search for the address.
            while (came := network.bytes()["up"][0] - before) < 3 * 1042 and time.monotonic() < end:
                time.sleep(0.1)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert 3 * 1042 <= came < 3 * 1042 + 1000


def test_a_command_on_a_host_runs_in_the_folder_in_which_it_was_switched_on():
    try:
        with Network() as network:
            pwd = [*network.add("host", 100).enter(), "pwd", "-P"]
            found = subprocess.run(pwd, check=True, capture_output=True, text=True).stdout
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert found == f"{os.getcwd()}\n"


@pytest.mark.slow
def test_hosts_join_leave_and_lose_their_link_and_not_one_bit_changes(result, capsys):
    assert rehearsal.main() == 0, capsys.readouterr()
    assert json.loads(result.read_text()).get("failures", []) == []
