"""What a reward worker does with a group: its rewards, and what the monitor sees in it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from sdr1.config import RewardConfig
from sdr1.rewards.steered import SteeredReward
from sdr1.types import Prompt, Scores

Monitor = Callable[[np.ndarray], np.ndarray]
"""Flags unsafe images: RGB uint8 (N, H, W, 3) to bool (N,); never trained on."""


class Scorer:
    """Reward and monitor of one worker."""

    def __init__(self, config: RewardConfig) -> None:
        self._reward = SteeredReward(config)
        self._monitor = _monitor(config)

    def score(self, images_NHWC: np.ndarray, prompt: Prompt) -> Scores:
        """Score the RGB uint8 images (G, H, W, 3) of one prompt."""
        begin = time.perf_counter()
        rewards = self._reward(images_NHWC, prompt)
        unsafe = self._monitor(images_NHWC) if self._monitor else None
        return Scores(rewards, unsafe, time.perf_counter() - begin)


def _monitor(config: RewardConfig) -> Monitor | None:
    if config.monitor is None:
        return None
    from sdr1.sandbox import ORACLE
    from sdr1.sandbox.oracle import Oracle, has_unsafe

    oracle = Oracle.load(ORACLE)
    return lambda images: np.array([has_unsafe(things) for things in oracle.read(images)])
