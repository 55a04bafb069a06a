"""A config as text for people: YAML with every field's description, and the arithmetic of its batches."""

from __future__ import annotations

import yaml
from pydantic import BaseModel

from sdr1.config.training import Config


def annotated_yaml(config: Config) -> str:
    """YAML that `sdr1.config.training.load` reads back as the same config, with each field's description above it."""
    return "\n".join(_lines(config, indent="")) + "\n"


def _lines(section: BaseModel, indent: str) -> list[str]:
    lines = []
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if field.description:
            lines.append(f"{indent}# {field.description}")
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {_inline(values[name])}")
    return lines


def _inline(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def batch_arithmetic(config: Config) -> list[tuple[str, str]]:
    """What one iteration does: rows of (quantity, how the number comes about)."""
    groups, size = config.prompts.per_iteration, config.rollout.group_size
    images, window, steps = config.images_per_iteration, config.policy.window, config.policy.steps
    updates = groups // config.groups_per_update
    transitions = images * len(window)
    per_update = transitions // updates
    passes, ranks = config.learner_passes * groups, config.learner.ranks
    shared = "" if ranks == 1 else f" by each of {ranks} ranks"
    guided = 1 if config.policy.guidance_scale == 1 else 2
    reference, reference_note = _groups_with_kl(config)
    unsafe = config.prompts.unsafe_per_iteration
    split = "labels as the prompts come" if unsafe is None else f"{unsafe} unsafe, {groups - unsafe} safe"
    chain_states, trained_states = config.states_per_group
    sampling = groups * chain_states * guided
    reference_evaluations = reference * trained_states * guided
    learning = groups * trained_states * guided
    doubled = "" if guided == 1 else " x 2 for guidance"
    if config.policy.initial_noise != "sample":
        doubled += ", less what a group shares up to its first noisy step"
    return [
        ("groups", f"{groups} ({split})"),
        ("images", f"{images:,} = {groups} groups x {size}"),
        ("transitions", f"{transitions:,} = {images:,} images x {len(window)} of {steps} steps"),
        ("updates", f"{updates} of {config.groups_per_update} groups, {per_update:,} transitions each"),
        (
            "learner passes",
            f"{passes:,}{shared} of at most {config.learner.micro_batch} transitions of one group",
        ),
        ("UNet evaluations, rollout", f"{sampling:,} = {images:,} images x {steps} steps{doubled}"),
        ("UNet evaluations, reference", f"{reference_evaluations:,} ({reference_note})"),
        ("UNet evaluations, learner", f"{learning:,} = {transitions:,} transitions{doubled}, with backward"),
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
