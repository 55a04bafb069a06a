"""The arithmetic of a run: groups, images, transitions, updates, learner passes and UNet evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdr1.config.training import Config


@dataclass(frozen=True)
class Counts:
    """Of one iteration; UNet evaluations with guidance are two each."""

    groups: int
    images: int
    transitions: int
    updates: int
    passes: int
    """Forward and backward passes of each learner rank."""
    rollout: int
    """UNet evaluations that sample, without those of the reference."""
    reference: int
    """UNet evaluations of the base model, at most: where labels come as they are, as if all were safe."""
    learner: int
    """UNet evaluations with backward."""


def count(config: Config) -> Counts:
    """The counts that `config` leads to."""
    groups, size, policy = config.prompts.per_iteration, config.rollout.group_size, config.policy
    trained = size * len(policy.window)
    # Samples that share their initial noise are one state up to and including the first noisy step.
    again = 0 if policy.initial_noise == "sample" else size - 1
    chain_states = size * policy.steps - again * (policy.window.start + 1)
    trained_states = trained - again
    guided = 1 if policy.guidance_scale == 1 else 2
    return Counts(
        groups=groups,
        images=groups * size,
        transitions=groups * trained,
        updates=groups // config.groups_per_update,
        passes=groups * passes(trained, config.learner.micro_batch, config.learner.ranks),
        rollout=groups * chain_states * guided,
        reference=_groups_with_kl(config)[0] * trained_states * guided,
        learner=groups * trained_states * guided,
    )


def passes(transitions: int, micro_batch: int, ranks: int) -> int:
    """How many micro-batches of at most `micro_batch` transitions each rank makes of a group's."""
    return math.ceil(transitions / (micro_batch * ranks))


def batch_arithmetic(config: Config) -> list[tuple[str, str]]:
    """What one iteration does: rows of (quantity, how the number comes about)."""
    counts, window, steps = count(config), config.policy.window, config.policy.steps
    groups, images, transitions, updates = counts.groups, counts.images, counts.transitions, counts.updates
    shared = "" if config.learner.ranks == 1 else f" by each of {config.learner.ranks} ranks"
    unsafe = config.prompts.unsafe_per_iteration
    split = "labels as the prompts come" if unsafe is None else f"{unsafe} unsafe, {groups - unsafe} safe"
    doubled = "" if config.policy.guidance_scale == 1 else " x 2 for guidance"
    if config.policy.initial_noise != "sample":
        doubled += ", less what a group shares up to its first noisy step"
    return [
        ("groups", f"{groups} ({split})"),
        ("images", f"{images:,} = {groups} groups x {config.rollout.group_size}"),
        ("transitions", f"{transitions:,} = {images:,} images x {len(window)} of {steps} steps"),
        (
            "updates",
            f"{updates} of {config.groups_per_update} groups, {transitions // updates:,} transitions each",
        ),
        (
            "learner passes",
            f"{counts.passes:,}{shared} of at most {config.learner.micro_batch} transitions of one group",
        ),
        ("UNet evaluations, rollout", f"{counts.rollout:,} = {images:,} images x {steps} steps{doubled}"),
        ("UNet evaluations, reference", f"{counts.reference:,} ({_groups_with_kl(config)[1]})"),
        (
            "UNet evaluations, learner",
            f"{counts.learner:,} = {transitions:,} transitions{doubled}, with backward",
        ),
        ("whole run", f"{config.iterations} iterations, {config.iterations * images:,} images"),
    ]


def _groups_with_kl(config: Config) -> tuple[int, str]:
    """How many groups of an iteration carry the KL term, at most, and why."""
    groups, unsafe = config.prompts.per_iteration, config.prompts.unsafe_per_iteration
    if config.learner.kl_weight == 0:
        return 0, "learner.kl_weight is 0"
    if config.learner.kl_on == "all":
        return groups, "KL on all groups"
    if unsafe is None:
        return groups, "KL on safe groups; at most, if all prompts are safe"
    return groups - unsafe, f"KL on the {groups - unsafe} safe groups"
