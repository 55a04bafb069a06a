"""The summary of an iteration against figures computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdr1.base.records import GroupReport, GroupTask, IterationReport, Prompt, UpdateReport, Usage
from sdr1.planning.plan import plan
from sdr1.training.metrics import summarize
from sdr1.training.run import train


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


@pytest.mark.parametrize(
    "options",
    [
        {"policy": {"initial_noise": "group"}},
        # Two updates an iteration: what the weights that drew predict is shipped.
        {
            "policy": {"solver": "DPMSolverMultistepScheduler", "noise_window": None},
            "learner": {"objective": "forward", "groups_per_update": 1},
        },
    ],
    ids=["grpo", "forward"],
)
def test_unet_evaluations_are_those_that_a_run_makes_and_a_plan_tells(small, tmp_path, monkeypatch, options):
    made, forward = [], UNet2DConditionModel.forward

    def counted(self, sample, *arguments, **options):
        # A model's files are tried once without weights, before anything is written.
        if not sample.is_meta:
            made.append(len(sample) * (3 if torch.is_grad_enabled() else 1))
        return forward(self, sample, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    config = small(2, **options)
    train(config, local=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["unet_evaluations"] for row in rows] == [sum(made) / 2, sum(made)]
    monkeypatch.undo()
    found = plan(config)
    images = 2 * found["groups"]["images_per_iteration"]
    assert found["unet_evaluations_per_image"]["total"] * images == pytest.approx(sum(made))
