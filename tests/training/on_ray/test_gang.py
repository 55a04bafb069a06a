"""Two learner ranks on Ray: the death of one restarts both from the snapshot, and changes no bit."""

from __future__ import annotations

import json
import threading
import time

import psutil
import pytest

from sdr1.training.run import train


@pytest.mark.slow
def test_the_death_of_a_rank_restarts_all_of_them(small, tmp_path):
    def config(name):
        return small(4, run={"directory": str(tmp_path / name)}, learner={"ranks": 2})

    undisturbed = train(config("calm"))
    killed = []

    def strike() -> None:
        journal = tmp_path / "ray" / "metrics.jsonl"
        while not (journal.exists() and journal.read_bytes().count(b"\n")):
            time.sleep(0.02)
        ranks = [
            p for p in psutil.Process().children(recursive=True) if "LearnerActor" in " ".join(p.cmdline())
        ]
        assert len(ranks) == 2
        ranks[-1].kill()
        killed.append(ranks[-1].pid)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    disturbed = train(config("ray"))
    assert killed, "nothing was killed while the run went on"
    assert disturbed.weights_sha256 == undisturbed.weights_sha256
    rows = [json.loads(line) for line in (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
