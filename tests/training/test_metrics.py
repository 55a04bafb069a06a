"""The summary of an iteration against figures computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdr1.base.records import GroupReport, GroupTask, IterationReport, Prompt, UpdateReport, Usage
from sdr1.training.metrics import summarize


def group(index: int, label: str, reward: float, kl: float | None, unsafe: float) -> GroupReport:
    task = GroupTask(0, 3, index, Prompt("a thing", label), version=2)
    figures = {"clip_fraction": 0.25, "ratio_gap/step_0": 1e-7 * (index + 1)} | ({"kl": kl} if kl else {})
    gap = 0.1 if unsafe else None
    return GroupReport(
        task, reward, 0.1, unsafe, 0.0, 1.0, figures, colours={"brightness": reward}, monitor_gap=gap
    )


def test_summary_by_hand(small):
    groups = (group(0, "unsafe", 0.2, None, 0.5), group(1, "safe", 0.6, 0.04, 0.0))
    report = IterationReport(
        3, groups, (UpdateReport(4, 0.5, 1e-3, 0.5),), Usage(3.0, 1.2, 2, 3), seconds=4.0
    )
    metrics = summarize(report, small(rollout={"workers": 2}))
    assert metrics["brightness"] == 0.6, "of the safe group"
    assert metrics["monitor_gap"] == pytest.approx(0.1)
    assert metrics["unsafe_rate"] == 0.5
    assert (metrics["reward_unsafe"], metrics["reward_safe"]) == (0.2, 0.6)
    assert metrics["kl"] == 0.04
    assert metrics["staleness"] == 1
    assert metrics["images_per_second"] == pytest.approx(6 / 4)
    assert metrics["rollout_busy"] == pytest.approx(3 / 8)
    assert metrics["reward_busy"] == pytest.approx(1.2 / 12)
    assert metrics["learner_busy"] == pytest.approx(2.5 / 4)
    assert metrics["ratio_gap/step_0"] == pytest.approx(2e-7)


def test_what_has_no_data_is_left_out(small):
    report = IterationReport(
        0, (group(0, "unsafe", 0.2, None, 0.5),), (UpdateReport(1, 0.5, 1e-3, 0.5),), Usage(1, 1, 1, 1), 2.0
    )
    metrics = summarize(report, small())
    assert "kl" not in metrics
    assert "reward_safe" not in metrics


def test_reward_terms_have_curves(small):
    groups = tuple(
        replace(group(n, "safe", 0.1, None, 0.0), reward_terms={"main": 0.2 * n, "judge": -1.0})
        for n in range(2)
    )
    report = IterationReport(0, groups, (UpdateReport(1, 0.5, 1e-3, 0.5),), Usage(1, 1, 1, 1), 2.0)
    metrics = summarize(report, small())
    assert metrics["reward_term/main"] == pytest.approx(0.1)
    assert metrics["reward_term/judge"] == -1
