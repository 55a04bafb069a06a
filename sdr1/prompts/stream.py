"""Training prompts: those that a config asks for, and the stream that gives every iteration its groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdr1.base.errors import UserError
from sdr1.base.records import GroupTask, Prompt
from sdr1.config.prompts import PromptSource
from sdr1.config.rewards import EmbeddingTerm
from sdr1.config.training import Config
from sdr1.prompts.labels import by_score, read


def sources(config: Config) -> tuple[PromptSource, ...]:
    """The source of `prompts.path`, or those of `prompts.mix`."""
    return config.prompts.mix or (config.prompts,)


def load(config: Config) -> PromptStream:
    """Read, label and check everything that the config's prompts name.

    Raises:
        UserError: a file or an option is wrong.
    """
    scores: Callable[[Sequence[Prompt]], list[Prompt]] | None = None
    lists, notes = [], []
    for source in sources(config):
        prompts, file = read(source)
        if source.label == "score":
            scores = scores or by_score(config)
            prompts = scores(prompts)
        lists.append(prompts)
        notes += [file.describe()] if file else []
    return PromptStream(lists, config, notes)


def describe_truncated(prompts: Sequence[Prompt], tokenizer: Any) -> list[str]:
    """One line that names the first of those prompts whose end the text encoder never reads; empty without any."""
    cut = truncated(prompts, tokenizer)
    if not cut:
        return []
    named = "; ".join(repr(prompt.text[:50] + ("..." if len(prompt.text) > 50 else "")) for prompt in cut[:5])
    more = f" and {len(cut) - 5:,} more" if len(cut) > 5 else ""
    return [
        f"prompts: {len(cut):,} longer than {tokenizer.model_max_length} tokens, cut there: {named}{more}"
    ]


def truncated(prompts: Sequence[Prompt], tokenizer: Any) -> list[Prompt]:
    """Those prompts that are longer than a text encoder reads: what stands behind its last token has no effect."""
    limit = tokenizer.model_max_length
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    lengths = dict(zip(texts, map(len, tokenizer(texts, truncation=False, verbose=False).input_ids)))
    return [prompt for prompt in prompts if lengths[prompt.text] > limit]


class PromptStream:
    """Which prompts an iteration trains on: a function of (seed, iteration) alone, so a resume needs no position.

    Every epoch is a new shuffle; with `unsafe_share` the safe and the unsafe prompts have epochs of their own.
    `lists` holds the prompts of each of `sources(config)`; `notes` are lines about their files.

    Raises:
        UserError: prompts have no labels where the config needs them, or a share of the groups cannot be had.
    """

    def __init__(self, lists: Sequence[Sequence[Prompt]], config: Config, notes: Sequence[str] = ()) -> None:
        self._config, self._notes = config, notes
        self.prompts = [prompt for prompts in lists for prompt in prompts]
        unlabelled = next((prompt for prompt in self.prompts if prompt.label is None), None)
        if unlabelled is not None and (reason := _needs_labels(config)):
            raise UserError(
                f"prompts.path: {_names(config)}: {unlabelled.text!r} has no label, but {reason} needs one; set "
                "prompts.label or prompts.label_column, or use a .jsonl file with labels safe and unsafe"
            )
        total, unsafe = config.prompts.per_iteration, config.prompts.unsafe_per_iteration
        self.pools: list[tuple[list[Prompt], int]] = []
        """Prompts with epochs of their own, and their groups in an iteration."""
        if unsafe is None:
            self._add_pools(lists, total)
            return
        for label, count in (("unsafe", unsafe), ("safe", total - unsafe)):
            labelled = [[prompt for prompt in prompts if prompt.label == label] for prompts in lists]
            if count and not any(labelled):
                raise UserError(
                    f"prompts.unsafe_share: {config.prompts.unsafe_share}: asks for {count} {label} prompts an "
                    f"iteration, {_names(config)} has none; add some or change the share"
                )
            self._add_pools(labelled, count)

    def _add_pools(self, lists: Sequence[Sequence[Prompt]], groups: int) -> None:
        """Divide groups of an iteration among the sources that have prompts, by their weights."""
        mix = self._config.prompts.mix
        weights = [(mix[n].weight if mix else 1.0) if prompts else 0.0 for n, prompts in enumerate(lists)]
        for n, (prompts, count) in enumerate(zip(lists, _apportion(groups, weights))):
            if groups and prompts and not count:
                raise UserError(
                    f"prompts.mix: {mix[n].path!r}: weight {mix[n].weight:g} is not one of {groups} groups an "
                    "iteration; raise it, or prompts.per_iteration"
                )
            if count:
                self.pools.append((list(prompts), count))

    def describe(self) -> list[str]:
        """What is trained on: a line for each pool of prompts with epochs of its own, and what there is to say of the files."""
        lines = []
        for prompts, count in self.pools:
            labels = Counter(prompt.label or "unlabelled" for prompt in prompts)
            held = ", ".join(f"{number:,} {label}" for label, number in sorted(labels.items()))
            repeated = len(prompts) - len({prompt.text for prompt in prompts})
            again = f", {repeated:,} of them repeated" if repeated else ""
            epochs = self._config.iterations * count / len(prompts)
            lines.append(
                f"prompts: {held}{again}; {count} groups an iteration, {epochs:.2g} epochs in the whole run"
            )
        return [*lines, *self._notes]

    def tasks(self, iteration: int, version: int) -> list[GroupTask]:
        """The groups of one iteration, to be made by weights `version`."""
        prompts = [
            pool[self._index(number, len(pool), iteration * count + offset)]
            for number, (pool, count) in enumerate(self.pools)
            for offset in range(count)
        ]
        return [
            GroupTask(self._config.seed, iteration, g, prompt, version) for g, prompt in enumerate(prompts)
        ]

    def _index(self, pool: int, size: int, position: int) -> int:
        epoch, place = divmod(position, size)
        return int(np.random.default_rng((self._config.seed, pool, epoch)).permutation(size)[place])


def _needs_labels(config: Config) -> str | None:
    if config.prompts.unsafe_share is not None:
        return "prompts.unsafe_share"
    for name, term in {"reward": config.reward, **config.reward.terms}.items():
        if isinstance(term, EmbeddingTerm) and term.kind != "plain" and term.steer == "unsafe":
            return "reward.steer=unsafe" if name == "reward" else f"reward.terms.{name}.steer=unsafe"
    if config.learner.kl_weight > 0 and config.learner.kl_on == "safe":
        return "learner.kl_on=safe"
    return None


def _names(config: Config) -> str:
    return ", ".join(repr(source.path) for source in sources(config))


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights that sum to `total`, by largest remainders."""
    whole = sum(weights) or 1.0
    exact = [total * weight / whole for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda n: (counts[n] - exact[n], n))
    for n in by_remainder[: (total - sum(counts)) if any(weights) else 0]:
        counts[n] += 1
    return counts
