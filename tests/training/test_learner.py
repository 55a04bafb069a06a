"""The learner against plain loops, and what stops it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdr1.base.errors import TrainingError
from sdr1.base.records import GroupTask, Prompt, Scores
from sdr1.method import ddim
from sdr1.method.objective import group_advantages
from sdr1.models.policy import Policy
from sdr1.training import checkpoint
from sdr1.training.learner import Learner
from sdr1.training.objectives.grpo import Grpo

SAFE, UNSAFE = Prompt("a red circle", "safe"), Prompt("a deadly thing", "unsafe")


def scores(rewards: list[float]) -> Scores:
    return Scores(np.array(rewards, np.float32), None, 0.0)


def learner_and_group(config, prompt=SAFE):
    policy = Policy(config.policy, seed=config.seed, reference=True)
    task = GroupTask(config.seed, 0, 0, prompt, version=0)
    return Learner(config, policy), policy, task, Grpo(config, policy).rollout(task).experience


def test_ratio_is_one_and_kl_is_zero_before_the_first_update(small):
    learner, _, task, trajectory = learner_and_group(small())
    report = learner.accumulate(task, trajectory, scores([0.1, 0.2, 0.6]))
    gaps = [report.figures.pop(f"ratio_gap/step_{step}") for step in range(2)]
    assert max(gaps) < 1e-5
    assert report.figures == {
        "kl": pytest.approx(0, abs=1e-9),
        "prediction_norm": pytest.approx(1, abs=1e-5),
        "clip_fraction": 0,
    }


@pytest.mark.parametrize(("trainable", "noise"), [("lora", "sample"), ("full", "sample"), ("full", "group")])
def test_gradient_equals_a_loop_over_timesteps(small, trainable, noise):
    policy = {"trainable": trainable, "initial_noise": noise}
    config = small(policy=policy, prompts={"per_iteration": 1, "unsafe_share": None})
    learner, policy, task, trajectory = learner_and_group(config)
    rewards = [0.1, 0.2, 0.6]
    learner.accumulate(task, trajectory, scores(rewards))
    flattened = torch.cat([p.grad.flatten() for p in policy.parameters])
    for parameter in policy.parameters:
        parameter.grad = None
    advantages = group_advantages(torch.tensor(rewards), config.learner.advantage_clip)
    for k, step in enumerate(trajectory.steps):
        latents, following = (
            torch.from_numpy(trajectory.states[k]),
            torch.from_numpy(trajectory.states[k + 1]),
        )
        mean, sigma = policy.transition(latents, torch.full((3,), int(step)), task.prompt.text)
        log_probs = ddim.log_prob(following, mean, sigma)
        # rho is 1 and the KL stationary here, so the gradient is the plain policy gradient's.
        (-(advantages * log_probs).mean() / len(trajectory.steps)).backward()
    looped = torch.cat([p.grad.flatten() for p in policy.parameters])
    assert (flattened - looped).norm() <= 1e-5 * looped.norm()
    assert looped.norm() > 0


@pytest.mark.parametrize("scale", ["group", "pooled"])
def test_a_group_of_equal_rewards_teaches_nothing(small, scale):
    learner = {"kl_weight": 0.0, "advantage_scale": scale}
    config = small(prompts={"per_iteration": 1, "unsafe_share": None}, learner=learner)
    learner, _, task, trajectory = learner_and_group(config)
    report = learner.accumulate(task, trajectory, scores([-0.9] * 3))
    assert report.reward_std == 0
    assert learner.step().grad_norm == 0


def test_other_weights_than_those_that_sampled_stop_the_run(small):
    learner, policy, task, trajectory = learner_and_group(small())
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(0.02)
    with pytest.raises(TrainingError, match="likelihood ratio"):
        learner.accumulate(task, trajectory, scores([0.1, 0.2, 0.6]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_rewards_stop_before_anything(small, bad):
    learner, policy, task, trajectory = learner_and_group(small())
    with pytest.raises(TrainingError, match="rewards are not finite"):
        learner.accumulate(task, trajectory, scores([0.1, bad, 0.2]))
    assert all(parameter.grad is None for parameter in policy.parameters)


def test_a_non_finite_loss_stops_before_the_optimizer(small):
    learner, _, task, trajectory = learner_and_group(small())
    broken = replace(trajectory, log_probs=np.full_like(trajectory.log_probs, np.nan))
    before = learner.weights(0)
    with pytest.raises(TrainingError, match="loss is nan"):
        learner.accumulate(task, broken, scores([0.1, 0.3, 0.2]))
    assert learner.weights(0).checksum == before.checksum


def test_a_non_finite_gradient_stops_before_the_optimizer(small):
    config = small(prompts={"per_iteration": 1, "unsafe_share": None})
    learner, policy, task, trajectory = learner_and_group(config)
    learner.accumulate(task, trajectory, scores([0.1, 0.3, 0.2]))
    policy.parameters[0].grad.view(-1)[0] = float("inf")
    before = learner.weights(0)
    with pytest.raises(TrainingError, match="gradient norm"):
        learner.step()
    assert learner.weights(0).checksum == before.checksum


def test_an_update_raises_the_likelihood_of_the_better_image(small):
    config = small(prompts={"per_iteration": 1, "unsafe_share": None}, learner={"kl_weight": 0.0})
    learner, policy, task, trajectory = learner_and_group(config, UNSAFE)
    learner.accumulate(task, trajectory, scores([0.0, 0.0, 1.0]))
    learner.step()
    latents, following = torch.from_numpy(trajectory.states[0]), torch.from_numpy(trajectory.states[1])
    with torch.no_grad():
        mean, sigma = policy.transition(latents, torch.zeros(3, dtype=torch.long), task.prompt.text)
    gain = ddim.log_prob(following, mean, sigma) - torch.from_numpy(trajectory.log_probs[0])
    assert gain[2] > gain[:2].max()


@pytest.mark.parametrize(
    ("start", "kept"), [(0.0, [1, 0.5623, 0.3162, 0.1778]), (0.5, [1, 1, 1, 0.3162]), (1.0, [1] * 4)]
)
def test_the_learning_rate_falls_by_equal_factors_towards_a_tenth(small, start, kept):
    config = small(
        iterations=4,
        prompts={"per_iteration": 1, "unsafe_share": None},
        learner={"decay_start": start, "kl_weight": 0.0},
    )
    learner, policy, _, _ = learner_and_group(config)
    rates = []
    for iteration in range(4):
        task = GroupTask(0, iteration, 0, UNSAFE, version=iteration)
        _, trajectory = policy.chain(task, 3, with_reference=False)
        learner.accumulate(task, trajectory, scores([0.1, 0.3, 0.2]))
        rates.append(learner.step().learning_rate)
    assert rates == pytest.approx([1e-3 * share for share in kept], rel=1e-3)


def test_the_reward_is_compared_with_the_monitor(small):
    learner, _, task, trajectory = learner_and_group(small())
    flags = np.array([True, False, False])
    given = replace(scores([0.3, 0.1, 0.2]), unsafe=flags, colours={"brightness": 0.4})
    report = learner.accumulate(task, trajectory, given)
    assert report.monitor_gap == pytest.approx(-0.15)
    assert report.colours == {"brightness": 0.4}
    nobody = learner.accumulate(task, trajectory, replace(given, unsafe=np.array([True] * 3)))
    assert nobody.monitor_gap is None


def test_the_norm_of_predictions_is_that_beside_the_bases(small, monkeypatch):
    config = small(policy={"guidance_scale": 1}, prompts={"per_iteration": 1, "unsafe_share": None})
    learner, policy, task, trajectory = learner_and_group(config)
    plain = type(policy)._predict
    monkeypatch.setattr(type(policy), "_predict", lambda *given: 1.07 * plain(*given))
    monkeypatch.setattr(learner._objective, "tolerance", float("inf"))
    figures = learner.accumulate(task, trajectory, scores([0.1, 0.2, 0.6])).figures
    assert figures["prediction_norm"] == pytest.approx(1.07, rel=1e-4)


def test_the_average_is_the_recursion_by_hand_and_goes_through_a_checkpoint(small, tmp_path):
    config = small(
        iterations=3,
        prompts={"per_iteration": 1, "unsafe_share": None},
        learner={"ema_decay": 0.24, "kl_weight": 0.0},
    )
    learner, policy, _, _ = learner_and_group(config)
    average = policy.flat.tensor.double()
    for update in range(1, 4):
        task = GroupTask(0, update - 1, 0, UNSAFE, version=update - 1)
        learner.accumulate(task, policy.chain(task, 3, with_reference=False)[1], scores([0.1, 0.3, 0.2]))
        learner.step()
        # (1 + n) / (10 + n), up to the decay that is asked for.
        decay = (2 / 11, 0.24, 0.24)[update - 1]
        average = decay * average + (1 - decay) * policy.flat.tensor.double()
    found = learner.result(3)
    assert np.abs(found.buffer.view(np.float32) - average.numpy()).max() < 1e-7
    assert found.checksum != learner.weights(3).checksum, "drawn by what is trained"
    state = checkpoint.load(checkpoint.save(tmp_path, learner.state(3), config, {})).state
    assert (state.result.checksum, state.current.checksum) == (found.checksum, learner.weights(3).checksum)
    other = Learner(config)
    other.restore(state)
    assert other.result(3).checksum == found.checksum
