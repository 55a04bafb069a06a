"""The learner's flattened micro-batches against a loop over timesteps with batches of 4, on the same group.

The loop is what other trainers do: every transition of every sample is evaluated, a timestep after the other. Both must
leave the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import report, seconds
from sdr1.base.process import prepare_process
from sdr1.base.records import GroupTask, Prompt, Scores, Trajectory
from sdr1.config.files import load
from sdr1.config.training import Config
from sdr1.method import ddim
from sdr1.method.objective import clipped_loss, group_advantages
from sdr1.models.policy import Policy
from sdr1.training.learner import Learner

RUNS, BATCH, TOLERANCE = 7, 4, 1e-5


def loop(
    policy: Policy, config: Config, task: GroupTask, trajectory: Trajectory, rewards: np.ndarray
) -> None:
    """Leave the group's gradient in the policy's parameters."""
    advantages = group_advantages(torch.from_numpy(rewards), config.learner.advantage_clip)
    transitions, samples = trajectory.log_probs.shape
    total = transitions * samples * config.groups_per_update
    for k, step in enumerate(trajectory.steps):
        for first in range(0, samples, BATCH):
            some = slice(first, first + BATCH)
            latents, following = (torch.from_numpy(trajectory.states[each, some]) for each in (k, k + 1))
            steps = torch.full((len(latents),), int(step))
            mean, sigma = policy.transition(latents, steps, task.prompt.text)
            log_probs = ddim.log_prob(following, mean, sigma)
            old = torch.from_numpy(trajectory.log_probs[k, some])
            loss, _ = clipped_loss(log_probs, old, advantages[some], config.learner.clip_range)
            (loss.sum() / total).backward()


def main() -> None:
    prepare_process(1)
    config = load("configs/sandbox.yaml", ["learner.kl_weight=0", "learner.advantage_scale=group"])
    policy = Policy(config.policy, seed=config.seed)
    task = GroupTask(0, 0, 0, Prompt("a red circle", "safe"), version=0)
    group_size = config.rollout.group_size
    _, trajectory = policy.chain(task, group_size, with_reference=False)
    rewards = np.random.default_rng(0).normal(size=group_size).astype(np.float32)
    scores = Scores(rewards, None, 0.0)
    learner = Learner(config, policy)

    def gradient(accumulate: Callable[[], object]) -> tuple[float, torch.Tensor]:
        for parameter in policy.parameters:
            parameter.grad = None
        took = seconds(accumulate)
        return took, torch.cat([p.grad.flatten() for p in policy.parameters if p.grad is not None])

    def pair() -> tuple[float, float, float]:
        slow, expected = gradient(lambda: loop(policy, config, task, trajectory, rewards))
        fast, found = gradient(lambda: learner.accumulate(task, trajectory, scores))
        return slow, fast, ((found - expected).norm() / expected.norm()).item()

    pair()
    runs = [pair() for _ in range(RUNS)]
    worst = max(difference for *_, difference in runs)
    assert worst <= TOLERANCE, f"the gradients differ by {worst:.1e}"
    report(
        "learner_batching",
        f"seconds of a loop over timesteps with batch {BATCH} over seconds flattened, for the same gradient",
        [(slow, fast) for slow, fast, _ in runs],
        gradient_difference=worst,
    )


if __name__ == "__main__":
    main()
