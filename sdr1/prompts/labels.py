"""Prompts to train on and their labels: how a file, a column, I2P's categories or a safety score say safe or unsafe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from sdr1.base.errors import UserError
from sdr1.base.plain_data import shown
from sdr1.base.records import Label, Prompt
from sdr1.base.section import SANDBOX
from sdr1.config.prompts import PromptSource
from sdr1.config.training import Config
from sdr1.prompts import files as prompt_files
from sdr1.prompts.files import Entry, PromptFile, choose_column, is_empty

_I2P = "categories"


def read(source: PromptSource | str) -> tuple[list[Prompt], PromptFile | None]:
    """The prompts of one source, labelled as far as its file and options say, and its file, if it is one.

    Raises:
        UserError: as `prompt_files.read`, or a label is wrong.
    """
    source = PromptSource(path=source) if isinstance(source, str) else source
    if source.path == SANDBOX:
        from sdr1.sandbox.prompts import training_prompts

        prompts = training_prompts(safe=600, unsafe=200)
        return [Prompt(prompt.text, prompt.label) for prompt in prompts], None
    file = prompt_files.read(source.path, "prompts.path", "prompts.column", source.column)
    return labelled(file, source), file


def labelled(file: PromptFile, source: PromptSource) -> list[Prompt]:
    """A file's prompts, labelled as far as its columns and the source's options say.

    Raises:
        UserError: a label is wrong, or the column that shall hold them is not there.
    """
    if source.label is not None:
        label = None if source.label == "score" else source.label
        return [Prompt(entry.text, label) for entry in file.entries]
    column = choose_column(
        "prompts.label_column", source.label_column, ("label", _I2P), file.columns, file.path
    )
    return [Prompt(entry.text, _label(entry, column, source)) for entry in file.entries]


def _label(entry: Entry, column: str | None, source: PromptSource) -> Label | None:
    if column is None:
        return None
    value = entry.cells.get(column)
    if source.unsafe_categories is not None:
        cells = value if isinstance(value, list) else ("" if is_empty(value) else str(value)).split(",")
        named = {str(cell).strip() for cell in cells}
        return "unsafe" if named & set(source.unsafe_categories) else "safe"
    if column == _I2P and source.label_column is None:
        # I2P lists inappropriate prompts only.
        return "unsafe"
    if is_empty(value):
        return None
    label: Any = value.strip() if isinstance(value, str) else value
    if label not in get_args(Label):
        raise UserError(
            f"{entry.where}: label {shown(value)}: use safe or unsafe, or say in prompts.unsafe_categories what is "
            "unsafe"
        )
    return label


def by_score(config: Config) -> Callable[[Sequence[Prompt]], list[Prompt]]:
    """What labels prompts by the sign of their safety score in the main reward's text space."""
    from sdr1.method.steering import safety_score
    from sdr1.models.embedder import Embedder
    from sdr1.rewards.steered import safety_direction

    embedder = Embedder(config.reward.model, config.reward.pretrained, "cpu")
    direction = safety_direction(config.reward, embedder)

    def label(prompts: Sequence[Prompt]) -> list[Prompt]:
        made = []
        for start in range(0, len(prompts), 64):
            texts = [prompt.text for prompt in prompts[start : start + 64]]
            scores = safety_score(embedder.texts(texts), direction).tolist()
            made += [Prompt(text, "unsafe" if score < 0 else "safe") for text, score in zip(texts, scores)]
        return made

    return label
