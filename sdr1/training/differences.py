"""What differs between a config and the one that a run was made with, and what that does to the result."""

from __future__ import annotations

from typing import Any, NamedTuple

from sdr1.base.plain_data import flatten
from sdr1.config.training import Config


class Difference(NamedTuple):
    """A field that differs between a config and the one a checkpoint was made with."""

    field: str
    then: object
    now: object

    @property
    def fits(self) -> bool:
        """Whether the weights of the one mean anything under the other."""
        return not self.field.startswith(_IDENTITY)

    @property
    def matters(self) -> bool:
        """Whether it changes the result."""
        return not self.field.startswith(_HARMLESS)

    def __str__(self) -> str:
        effect = "changes the result from here" if self.matters else "does not change the result"
        return f"resume: {self.field}: {self.then!r} -> {self.now!r} ({effect})"


def differences(config: Config, made: dict[str, Any]) -> list[Difference]:
    """What differs between a config and that, as plain data, which a run was made with.

    A field that did not exist then had what is its default now.
    """
    now, then = flatten(config.model_dump(mode="json")), flatten(made)
    defaults = flatten(Config().model_dump(mode="json"))
    then = {field: defaults[field] for field in now.keys() & defaults.keys()} | then
    return [
        Difference(field, then.get(field), now.get(field))
        for field in sorted(now.keys() | then.keys())
        if then.get(field) != now.get(field) and not field.startswith(_UNIMPORTANT)
    ]


_IDENTITY = (
    "policy.model",
    "policy.revision",
    "policy.variant",
    "policy.unet",
    "policy.trainable",
    "policy.lora",
    "policy.channels_last",
)
_UNIMPORTANT = ("run.directory", "run.resume", "run.storage")
_HARMLESS = (
    "rollout.workers",
    "reward.workers",
    "policy.gradient_checkpointing",
    "reward.monitor",
    "checkpoint.",
    "evaluation.",
    "tracking.",
    "stop.",
    "run.task_timeout",
    "run.start_timeout",
    "run.placement",
)
