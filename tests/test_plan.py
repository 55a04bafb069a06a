"""The plan against what a run really does: FLOPs, bytes, and counts."""

from __future__ import annotations

import numpy as np
import pytest

from sdr1.costs import count_flops
from sdr1.learner import Learner
from sdr1.plan import lines, plan
from sdr1.policy import Policy
from sdr1.types import GroupTask, Prompt, Scores


@pytest.mark.parametrize(
    ("trainable", "noise", "evaluations"),
    [("lora", "sample", (6, 4, 4)), ("full", "sample", (6, 4, 4)), ("full", "group", (14 / 3, 8 / 3, 8 / 3))],
)
def test_a_run_executes_the_necessary_flops_and_moves_the_planned_bytes(small, trainable, noise, evaluations):
    config = small(
        policy={"trainable": trainable, "initial_noise": noise},
        prompts={"per_iteration": 1, "unsafe_share": None},
        learner={"kl_on": "all", "kl_weight": 1.0},
    )
    found = plan(config)
    policy = Policy(config.policy, seed=0, reference=True)
    task = GroupTask(0, 0, 0, Prompt("a red circle", "safe"), 0)
    with count_flops() as rollout:
        made = policy.rollout(task, 3, with_reference=True)
    learner = Learner(config, policy)
    with count_flops() as learning:
        learner.accumulate(task, made.trajectory, Scores(np.array([0.1, 0.2, 0.6], np.float32), None, 0.0))
    necessary = found["flops"]["per_image"]
    assert necessary["rollout"] > 0
    assert 0.95 <= rollout.get_total_flops() / (3 * necessary["rollout"]) <= 1.05
    assert 0.95 <= learning.get_total_flops() / (3 * necessary["learner"]) <= 1.05
    moved, held = found["bytes_per_iteration"], made.trajectory
    assert moved["weights_published"] == learner.weights(0).buffer.nbytes
    assert moved["images"] == made.images.nbytes
    assert moved["trajectories"] == held.states.nbytes + held.log_probs.nbytes
    assert moved["reference_means"] == held.reference_means.nbytes
    assert tuple(found["unet_evaluations_per_image"].values()) == pytest.approx(evaluations)
    assert any(line.startswith("bottleneck") for line in lines(found))
