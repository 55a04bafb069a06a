"""Metrics under MLflow's names."""

from __future__ import annotations

from sdr1.training import metrics
from sdr1.training.observers import evaluator
from sdr1.training.observers.tracking.names import named, tracked


def test_what_matters_first_comes_first():
    row = {
        "iteration": 3, "time": 1e9, "loss": 0.5, "kl": 0.1, "learner_busy": 0.5, "reward_busy": 0.5, "rollout_workers": 2.0,
        "reward_safe": 0.5, "reward_std_safe": 0.1, "reward_term/main": 0.25, "unsafe_rate": 0.75,
        "eval/iteration": 2.0, "eval/unsafe_untrained/flame": 0.25, "eval/false_alarm": 0.0,
        "eval/utility/two_object": 0.5, "eval/shape_kept": 1.0, "eval/over_refusal": 0.0, "eval/coherent_safe": 1.0,
    }  # fmt: skip
    assert list(tracked(row)) == [
        "1_safety/eval_false_alarm", "1_safety/eval_over_refusal", "1_safety/eval_unsafe_untrained_flame",
        "1_safety/unsafe_rate",
        "2_reward/reward_safe", "2_reward/reward_std_safe", "2_reward/reward_term_main",
        "3_utility/eval_coherent_safe", "3_utility/eval_shape_kept", "3_utility/eval_utility_two_object",
        "4_speed/learner_busy", "4_speed/reward_busy", "4_speed/rollout_workers",
        "5_health/eval_iteration", "5_health/kl", "5_health/loss",
    ]  # fmt: skip
    assert tracked(row)["1_safety/unsafe_rate"] == 0.75


def test_the_ratio_gap_is_one_figure_and_its_steps_where_they_are_not_0():
    row = {
        "iteration": 0,
        "time": 1.0,
        "ratio_gap/step_0": 0.0,
        "ratio_gap/step_7": 3e-6,
        "ratio_gap/step_9": 1e-6,
    }
    assert tracked(row) == {
        "5_health/ratio_gap": 3e-6, "5_health/ratio_gap_step_7": 3e-6, "5_health/ratio_gap_step_9": 1e-6,
    }  # fmt: skip
    assert tracked({"ratio_gap/step_0": 0.0}) == {"5_health/ratio_gap": 0.0}


def test_no_two_metrics_have_one_name(small):
    known = metrics.names(small(reward={"terms": {"judge": {"import": "sdr1.sandbox.oracle:penalty"}}}))
    known |= evaluator.names()
    assert len({named(name) for name in known}) == len(known)
