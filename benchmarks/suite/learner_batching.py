"""The learner's flattened micro-batches against a loop over timesteps with batches of 4, on the same group."""

from __future__ import annotations

from benchmarks.common import report, seconds
from sdr1.config import load
from sdr1.learner import Learner
from sdr1.policy import Policy
from sdr1.runtime import prepare_process
from sdr1.types import GroupTask, Prompt, Scores

RUNS = 5


def main() -> None:
    prepare_process(1)
    config = load("configs/sandbox.yaml", ["learner.kl_weight=0"])
    policy = Policy(config.policy, seed=config.seed)
    task = GroupTask(0, 0, 0, Prompt("a red circle", "safe"), version=0)
    trajectory = policy.rollout(task, config.rollout.group_size, with_reference=False).trajectory
    scores = Scores(trajectory.log_probs[0].copy(), None, 0.0)

    def accumulate(micro_batch: int) -> float:
        learner = Learner(
            load("configs/sandbox.yaml", ["learner.kl_weight=0", f"learner.micro_batch={micro_batch}"]),
            policy,
        )
        return seconds(lambda: learner.accumulate(task, trajectory, scores))

    # Samples are contiguous within a timestep, so micro-batches of 4 are the loop over timesteps in fours.
    accumulate(4), accumulate(config.learner.micro_batch)
    pairs = [(accumulate(4), accumulate(config.learner.micro_batch)) for _ in range(RUNS)]
    report("learner_batching", "seconds of a loop with batch 4 over seconds flattened", pairs)


if __name__ == "__main__":
    main()
