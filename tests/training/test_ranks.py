"""Learner ranks in plain processes: equal to one rank, deterministic, bound to one address, lost when a peer dies."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import psutil
import pytest

from sdr1.base.process import prepare_process
from sdr1.base.records import GroupTask, Prompt, Scores
from sdr1.config.training import validate
from sdr1.models.policy import Policy
from sdr1.training import objectives
from sdr1.training.learner import Learner, micro_batches
from sdr1.training.ranks import ALONE, LOOPBACK, Ranks, join, open_meeting


def test_micro_batches_are_shared_out_whole_and_once():
    for transitions, most, size in [(18, 4, 1), (18, 4, 2), (18, 4, 3), (5, 1, 4), (64, 32, 2), (7, 100, 7)]:
        shares = [micro_batches(transitions, most, Ranks(rank, size)) for rank in range(size)]
        assert all(shares), "an idle rank would have no gradient to add"
        assert all(len(chunk) <= most for share in shares for chunk in share)
        together = np.concatenate([chunk for share in shares for chunk in share])
        assert sorted(together) == list(range(transitions))
    one = np.array_split(np.arange(18), 5)
    assert all(np.array_equal(a, b) for a, b in zip(micro_batches(18, 4), one, strict=True))


def _train(values: dict, updates: int, ranks: Ranks) -> tuple[np.ndarray, list]:
    """Updates on the same groups in every process: made by a policy that is never trained, with made-up rewards."""
    config = validate(values)
    learner = Learner(config, ranks=ranks)
    policy = Policy(config.policy, seed=config.seed, reference=True)
    maker = objectives.kind(config)(config, policy)
    rng = np.random.default_rng(0)
    reports = []
    for update in range(updates):
        for group, prompt in enumerate([Prompt("a red circle", "safe"), Prompt("a deadly thing", "unsafe")]):
            task = GroupTask(config.seed, update, group, prompt, update)
            if update:
                # Off-policy from now on, as with stale groups; the ratio is checked before the first update only.
                task = GroupTask(config.seed, update, group, prompt, 0)
            scores = Scores(rng.normal(size=config.rollout.group_size).astype(np.float32), None, 0.0)
            reports.append(learner.accumulate(task, maker.rollout(task).experience, scores))
        reports.append(learner.step())
    return learner.weights(updates).buffer.view(np.float32), reports


def _member(values: dict, rank: int, size: int, inbox, updates: int):
    prepare_process(1)
    store = None
    if rank == 0:
        meeting, store = open_meeting(LOOPBACK, size, 60.0)
        for _ in range(size - 1):
            inbox.put(meeting)
    else:
        meeting = inbox.get()
    ranks = join(meeting, rank, LOOPBACK, "cpu", 60.0, store)
    listening = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"]
    return *_train(values, updates, ranks), listening


def together(values: dict, size: int, updates: int) -> list:
    context = get_context("spawn")
    with ProcessPoolExecutor(size, mp_context=context) as pool, context.Manager() as manager:
        inbox = manager.Queue()
        jobs = [pool.submit(_member, values, rank, size, inbox, updates) for rank in range(size)]
        return [job.result(timeout=300) for job in jobs]


GRPO = {"clip_range": 0.1}
FORWARD = {"objective": "forward", "forward": {"timesteps": 2, "clip_range": 0.1}}


@pytest.mark.parametrize(
    ("trainable", "rate", "objective"),
    [
        ("full", 1e-3, GRPO),
        pytest.param("lora", 1e-4, GRPO, marks=pytest.mark.slow),
        pytest.param("full", 1e-4, FORWARD, marks=pytest.mark.slow),
    ],
    ids=["full", "lora", "forward"],
)
def test_two_ranks_equal_one_after_three_updates(small, trainable, rate, objective):
    learner = {"learning_rate": rate, "kl_weight": 1.0, "kl_on": "safe", "micro_batch": 4, **objective}
    config = small(policy={"trainable": trainable}, rollout={"group_size": 4}, learner=learner)
    values = config.model_dump(mode="json")
    alone, reports = _train(values, 3, ALONE)
    first, second = together(values, 2, 3)
    assert np.array_equal(first[0], second[0]), "the ranks drifted apart"
    assert np.linalg.norm(first[0] - alone) <= 1e-6 * np.linalg.norm(alone)
    untrained, _ = _train(values, 0, ALONE)
    assert np.linalg.norm(untrained - alone) > 1e-4 * np.linalg.norm(alone)
    for one, two in zip(reports, first[1], strict=True):
        for name in ("loss", "figures", "grad_norm"):
            if hasattr(one, name):
                assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-2, abs=1e-6), name
    assert set(first[2] + second[2]) == {LOOPBACK}, "a socket listens elsewhere"
    if trainable == "lora":
        again = together(values, 2, 3)
        assert np.array_equal(again[0][0], first[0]), "not deterministic"
