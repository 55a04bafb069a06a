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
    parts: int
    """Trained pairs of a sample and a timestep: GRPO's transitions, or noised latents."""
    updates: int
    passes: int
    """Forward and backward passes of each learner rank."""
    rollout: int
    """UNet evaluations by the weights that sample."""
    reference: int
    """UNet evaluations of the base model, at most: where labels come as they are, as if all were safe."""
    learner: int
    """UNet evaluations with backward."""

    @property
    def total(self) -> int:
        """All UNet evaluations; a backward pass costs two."""
        return self.rollout + self.reference + 3 * self.learner


def count(config: Config) -> Counts:
    """The counts that `config` leads to."""
    groups, size, policy = config.prompts.per_iteration, config.rollout.group_size, config.policy
    parts = size * config.trained_timesteps
    # Samples that share their initial noise are one state up to and including the first noisy step.
    again = 0 if policy.initial_noise == "sample" else size - 1
    drawn = (size * policy.evaluations - again * (policy.window.start + 1)) * guided(config)
    if config.learner.objective == "grpo":
        trained = (parts - again) * guided(config)
    else:
        trained = parts
        # What they predict is shipped where the weights that are trained leave them.
        drawn += parts * config.off_policy
    return Counts(
        groups=groups,
        images=groups * size,
        parts=groups * parts,
        updates=groups // config.groups_per_update,
        passes=groups * passes(parts, config.learner.micro_batch, config.learner.ranks),
        rollout=groups * drawn,
        reference=_groups_with_kl(config)[0] * trained,
        learner=groups * trained,
    )


def guided(config: Config) -> int:
    """UNet evaluations of one guided prediction."""
    return 1 if config.policy.guidance_scale == 1 else 2


def passes(parts: int, micro_batch: int, ranks: int) -> int:
    """How many micro-batches of at most `micro_batch` parts each rank makes of a group's."""
    return math.ceil(parts / (micro_batch * ranks))


def batch_arithmetic(config: Config) -> list[tuple[str, str]]:
    """What one iteration does: rows of (quantity, how the number comes about)."""
    counts, steps, timesteps = count(config), config.policy.steps, config.trained_timesteps
    groups, images, parts, updates = counts.groups, counts.images, counts.parts, counts.updates
    ranks = "" if config.learner.ranks == 1 else f" by each of {config.learner.ranks} ranks"
    unsafe = config.prompts.unsafe_per_iteration
    split = "labels as the prompts come" if unsafe is None else f"{unsafe} unsafe, {groups - unsafe} safe"
    doubled = "" if guided(config) == 1 else " x 2 for guidance"
    shared = (
        ""
        if config.policy.initial_noise == "sample"
        else ", less what a group shares up to its first noisy step"
    )
    drawn, trained = f"{steps} steps{doubled}{shared}", f"{doubled}{shared}"
    name, each = "transitions", f"{timesteps} of {steps} steps"
    if config.learner.objective == "forward":
        name, each, trained = "noised latents", f"{timesteps} timesteps", ""
        drawn += f", and at {timesteps} timesteps" if config.off_policy else ""
    return [
        ("groups", f"{groups} ({split})"),
        ("images", f"{images:,} = {groups} groups x {config.rollout.group_size}"),
        (name, f"{parts:,} = {images:,} images x {each}"),
        ("updates", f"{updates} of {config.groups_per_update} groups, {parts // updates:,} {name} each"),
        (
            "learner passes",
            f"{counts.passes:,}{ranks} of at most {config.learner.micro_batch} {name} of one group",
        ),
        ("UNet evaluations, rollout", f"{counts.rollout:,} = {images:,} images x {drawn}"),
        ("UNet evaluations, reference", f"{counts.reference:,} ({_groups_with_kl(config)[1]})"),
        ("UNet evaluations, learner", f"{counts.learner:,} = {parts:,} {name}{trained}, with backward"),
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
