"""The rehearsal: what it makes of what it sees, where it cannot run, and once the whole of it."""

from __future__ import annotations

import json
import os

import pytest

from tests.training.on_ray import rehearsal
from tests.training.on_ray.rehearsal import copies, failures

GOOD = {
    "status": "SUCCEEDED",
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
    [({"status": "FAILED"}, "ended as FAILED"), ({"weights_sha256": "cd"}, "not those of the undisturbed run"),
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
    job = rehearsal.Job.__new__(rehearsal.Job)
    job.bytes = seen
    assert copies(job, {"rollout-1": (1, 4)}, size=2000) == {"rollout-1": 1.0}


@pytest.mark.slow
def test_hosts_join_leave_and_lose_their_link_and_not_one_bit_changes(result, capsys):
    assert rehearsal.main() == 0, capsys.readouterr()
    assert json.loads(result.read_text()).get("failures", []) == []
