"""The Ray executor against the one-process one."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress

import psutil
import pytest

from benchmarks.suite.schedule import stubs
from sdr1.base.errors import UserError
from sdr1.prompts import stream as prompts
from sdr1.training import loop
from sdr1.training.on_ray.actors import RewardActor
from sdr1.training.on_ray.executor import RayExecutor
from sdr1.training.run import train

FORWARD = {
    "policy": {"solver": "EulerAncestralDiscreteScheduler", "noise_window": None},
    # An average that lags draws, and what it predicts is shipped.
    "learner": {"objective": "forward", "ema_decay": 0.5},
    "rollout": {"group_size": 3, "weights": "ema"},
}


pytestmark = pytest.mark.usefixtures("shared_ray")
SLOW = pytest.mark.slow


@SLOW
@pytest.mark.parametrize(
    ("workers", "options"),
    [(3, {}), (1, {}), (1, FORWARD), (3, FORWARD)],
    ids=["3", "1", "1 forward", "3 forward"],
)
def test_ray_and_one_process_train_the_same_bits(small, tmp_path, workers, options):
    local = train(small(2, run={"directory": str(tmp_path / "local")}, **options), local=True)
    rollout = {"group_size": 3, **options.get("rollout", {}), "workers": workers}
    config = small(2, **{**options, "run": {"directory": str(tmp_path / "ray")}, "rollout": rollout})
    ray = train(config)
    assert ray.weights_sha256 == local.weights_sha256
    learner = {**options.get("learner", {}), "learning_rate": 1e-12}
    untrained = train(small(iterations=1, **{**options, "learner": learner}), local=True)
    assert untrained.weights_sha256 != local.weights_sha256


@pytest.mark.parametrize(
    ("victim", "options"),
    [
        ("learner", {}),
        *(pytest.param(victim, {}, marks=SLOW) for victim in ("rollout", "reward")),
        *(pytest.param(victim, FORWARD, marks=SLOW) for victim in ("rollout", "learner")),
    ],
    ids=["learner", "rollout", "reward", "rollout forward", "learner forward"],
)
def test_the_death_of_an_actor_changes_no_bit(small, tmp_path, victim, options):
    undisturbed = train(small(3, **options, run={"directory": str(tmp_path / "local")}), local=True)
    rollout = {**options.get("rollout", {}), "workers": 2}
    config = small(3, **{**options, "run": {"directory": str(tmp_path / "ray")}, "rollout": rollout})
    names = {"rollout": "RolloutActor", "reward": "RewardActor", "learner": "LearnerActor"}

    def strike() -> None:
        journal, found = tmp_path / "ray" / "metrics.jsonl", []
        while not (journal.exists() and journal.read_bytes().count(b"\n")):
            # Looking takes longer than an iteration where much else is going on; a process may end meanwhile.
            with suppress(psutil.Error):
                found = found or [
                    each
                    for each in psutil.Process().children(recursive=True)
                    if names[victim] in " ".join(each.cmdline())
                ]
            time.sleep(0.02)
        found[0].kill()
        killed.append(found[0].pid)

    killed: list[int] = []
    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    disturbed = train(config)
    assert killed, "nothing was killed while the run went on"
    assert disturbed.weights_sha256 == undisturbed.weights_sha256
    summary = json.loads((tmp_path / "ray" / "summary.json").read_text())
    assert summary["weights_sha256"] == disturbed.weights_sha256
    # Each iteration trains: what they have in common is not the beginning.
    shorter = train(small(iterations=2, run={"directory": str(tmp_path / "shorter")}), local=True)
    assert shorter.weights_sha256 != undisturbed.weights_sha256
    rows = [json.loads(line) for line in (tmp_path / "ray" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]


def test_a_term_that_does_not_build_ends_the_run_at_its_start(small):
    config = small(reward={"terms": {"x": {"import": "types:SimpleNamespace"}}})
    executor = RayExecutor(config, roles=stubs(0.0, 0.0)._replace(reward=RewardActor))
    with pytest.raises(
        UserError, match=r"^reward\.terms\.x\.import: .* returned SimpleNamespace; return the"
    ):
        loop.run(config, prompts.load(config), executor, [])
    # Started again and again it took the sum of growing pauses, minutes.
    assert not executor._rewards.losses
