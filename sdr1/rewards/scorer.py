"""What a reward worker does with a group: its rewards, term by term, and what the monitor sees in it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from sdr1.config import RewardConfig
from sdr1.errors import TrainingError
from sdr1.method.objective import standardised
from sdr1.rewards.embedder import Embedders
from sdr1.rewards.terms.base import Place, TermConfig
from sdr1.types import Prompt, Scores

Monitor = Callable[[np.ndarray], np.ndarray]
"""Flags unsafe images: RGB uint8 (N, H, W, 3) to bool (N,); never trained on."""


class Scorer:
    """Reward and monitor of one worker.

    Raises:
        UserError: a term names something that does not load.
    """

    def __init__(self, config: RewardConfig) -> None:
        embedders = Embedders(config.model, config.checkpoint, config.device, config.batch)
        self._options = _options(config)
        self._terms = {
            name: options.build(Place(_field(name), config.device, embedders))
            for name, options in self._options.items()
        }
        self._monitor = _monitor(config)

    def score(self, images_NHWC: np.ndarray, prompt: Prompt) -> Scores:
        """Score the RGB uint8 images (G, H, W, 3) of one prompt.

        Raises:
            TrainingError: a term does not give one number an image.
        """
        begin = time.perf_counter()
        rewards = np.zeros(len(images_NHWC), np.float32)
        means: dict[str, float] = {}
        for name, term in self._terms.items():
            values = np.asarray(term(images_NHWC, prompt), np.float32)
            if values.shape != rewards.shape:
                raise TrainingError(
                    f"{_field(name)}: gave shape {values.shape} for {len(images_NHWC)} images; needs one number each"
                )
            means[name] = float(values.mean())
            if self._options[name].normalise:
                values = standardised(torch.from_numpy(values)).numpy()
            rewards += np.float32(self._options[name].weight) * values
        unsafe = self._monitor(images_NHWC) if self._monitor else None
        terms = means if len(means) > 1 else {}
        return Scores(rewards, unsafe, time.perf_counter() - begin, terms)


def check(config: RewardConfig) -> None:
    """Raise UserError for what files can tell to be wrong with the terms; no weights are loaded."""
    for name, term in _options(config).items():
        term.check(_field(name))


def _options(config: RewardConfig) -> dict[str, TermConfig]:
    """Every term by its name, the reward's own first."""
    return {"main": config, **config.terms}


def _field(name: str) -> str:
    return "reward" if name == "main" else f"reward.terms.{name}"


def _monitor(config: RewardConfig) -> Monitor | None:
    if config.monitor is None:
        return None
    from sdr1.sandbox import ORACLE
    from sdr1.sandbox.oracle import Oracle, has_unsafe

    oracle = Oracle.load(ORACLE)
    return lambda images: np.array([has_unsafe(things) for things in oracle.read(images)])
