"""Where prompts come from, and how many of each kind an iteration takes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from sdr1.base.records import Label
from sdr1.base.section import SANDBOX, Section


class PromptSource(Section):
    """Where prompts come from and how they get their labels."""

    path: str = Field(
        SANDBOX,
        description="`sandbox`, a .txt (one prompt a line), .csv or .jsonl file, or `hub:DATASET[:SPLIT]`.",
    )
    column: str | None = Field(
        None,
        description="Column of the prompts; None takes the first of prompt, text, caption, adv_prompt, "
        "adversarial_prompt, `sensitive prompt` that is there.",
    )
    label: Label | Literal["score"] | None = Field(
        None,
        description="Label of the whole file, or `score`: by the sign of a prompt's safety score, which the reward's "
        "text encoder computes at start-up. None takes the label column.",
    )
    label_column: str | None = Field(
        None,
        description="Column of the labels; None takes `label` where it is there, in I2P files `categories`.",
    )
    unsafe_categories: tuple[str, ...] | None = Field(
        None,
        description="Values of the label column that make a prompt unsafe, any other makes it safe; a cell may hold "
        "several, with commas between. None: the cells say safe or unsafe; all of I2P is unsafe.",
    )


class MixedSource(PromptSource):
    weight: FiniteFloat = Field(
        1.0, ge=1e-6, le=1e6, description="Share of the groups, relative to the other weights."
    )


class PromptsConfig(PromptSource):
    mix: tuple[MixedSource, ...] = Field(
        (), description="Several sources with weights, in place of `path` and its labels."
    )
    per_iteration: int = Field(
        32, ge=1, le=100_000, description="Groups an iteration; each group is one prompt."
    )
    unsafe_share: FiniteFloat | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the groups with an unsafe prompt; None takes the file as it is shuffled.",
    )

    @property
    def unsafe_per_iteration(self) -> int | None:
        return None if self.unsafe_share is None else round(self.unsafe_share * self.per_iteration)
