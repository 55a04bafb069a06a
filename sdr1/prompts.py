"""Training prompts: reading and checking a file, and the stream that gives every iteration its groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from sdr1.config import SANDBOX, Config
from sdr1.errors import UserError
from sdr1.types import GroupTask, Label, Prompt


def read(path: str) -> list[Prompt]:
    """Prompts of a .jsonl file ({"text": ..., "label": "safe" | "unsafe"}) or a .txt file (one a line, no labels).

    Raises:
        UserError: the file is missing, empty, not UTF-8, or a line of it is wrong.
    """
    if path == SANDBOX:
        from sdr1.sandbox.prompts import training_prompts

        return [Prompt(prompt.text, prompt.label) for prompt in training_prompts(safe=600, unsafe=200)]
    file = Path(path)
    if not file.is_file():
        raise UserError(f"prompts.path: {path!r}: no such file; give `sandbox`, or a .jsonl or .txt file")
    if file.suffix not in (".jsonl", ".txt"):
        raise UserError(f"prompts.path: {path!r}: unknown kind {file.suffix!r}; use .jsonl or .txt")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompts.path: {path!r}: not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"prompts.path: {path!r}: the file holds no prompt; write one a line")
    if file.suffix == ".txt":
        return [Prompt(line, None) for _, line in numbered]
    return [_parse(line, f"prompts.path: {path!r} line {number}") for number, line in numbered]


def _parse(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f'{where}: not JSON ({error.msg}); write {{"text": "...", "label": "safe"}}'
        ) from error
    text, label = (row.get("text"), row.get("label")) if isinstance(row, dict) else (None, None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where}: no "text"; write {{"text": "...", "label": "safe"}}')
    if label is not None and label not in get_args(Label):
        raise UserError(f"{where}: label {label!r}: use safe or unsafe")
    return Prompt(text, label)


class PromptStream:
    """Which prompts an iteration trains on: a function of (seed, iteration) alone, so a resume needs no position.

    Every epoch is a new shuffle; with `unsafe_share` the safe and the unsafe prompts have epochs of their own.
    """

    def __init__(self, prompts: Sequence[Prompt], config: Config) -> None:
        self._config = config
        unlabelled = next((prompt for prompt in prompts if prompt.label is None), None)
        if unlabelled is not None and (reason := _needs_labels(config)):
            raise UserError(
                f"prompts.path: {config.prompts.path!r}: {unlabelled.text!r} has no label, but {reason} needs one; "
                "use a .jsonl file with labels safe and unsafe"
            )
        total, unsafe = config.prompts.per_iteration, config.prompts.unsafe_per_iteration
        if unsafe is None:
            self._pools = [(list(prompts), total)]
        else:
            by_label = {label: [p for p in prompts if p.label == label] for label in get_args(Label)}
            shares = {"unsafe": unsafe, "safe": total - unsafe}
            for label, count in shares.items():
                if count and not by_label[label]:
                    raise UserError(
                        f"prompts.unsafe_share: {config.prompts.unsafe_share}: asks for {count} {label} prompts an "
                        f"iteration, {config.prompts.path!r} has none; add some or change the share"
                    )
            self._pools = [(by_label[label], count) for label, count in shares.items() if count]

    def tasks(self, iteration: int, version: int) -> list[GroupTask]:
        """The groups of one iteration, to be made by weights `version`."""
        prompts = [
            pool[self._index(number, len(pool), iteration * count + offset)]
            for number, (pool, count) in enumerate(self._pools)
            for offset in range(count)
        ]
        return [
            GroupTask(
                self._config.seed, iteration, g, prompt, version, self._config.guidance_scale(iteration)
            )
            for g, prompt in enumerate(prompts)
        ]

    def _index(self, pool: int, size: int, position: int) -> int:
        epoch, place = divmod(position, size)
        return int(np.random.default_rng((self._config.seed, pool, epoch)).permutation(size)[place])


def _needs_labels(config: Config) -> str | None:
    if config.prompts.unsafe_share is not None:
        return "prompts.unsafe_share"
    if config.reward.steer == "unsafe":
        return "reward.steer=unsafe"
    if config.learner.kl_weight > 0 and config.learner.kl_on == "safe":
        return "learner.kl_on=safe"
    return None
