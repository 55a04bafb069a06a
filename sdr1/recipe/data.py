"""The recipe's training and test pictures, drawn from fixed seeds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from sdr1.sandbox.world import Scene, picture

TRAIN, TEST = 70_000, 3_000
_TEST_SEEDS = 10_000_000


@lru_cache(maxsize=1)
def training_set() -> tuple[list[Scene], torch.Tensor]:
    """Scenes and pictures uint8 (70000, 3, 32, 32)."""
    return _draw(range(TRAIN))


@lru_cache(maxsize=1)
def test_set() -> tuple[list[Scene], torch.Tensor]:
    """Scenes and pictures uint8 (3000, 3, 32, 32) that no stage trains on."""
    return _draw(range(_TEST_SEEDS, _TEST_SEEDS + TEST))


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """Float in [-1, 1] to uint8."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def generator(*key: int) -> torch.Generator:
    """A torch generator that belongs to a key of integers, e.g. (stage, step)."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> 1))


def _draw(seeds: range) -> tuple[list[Scene], torch.Tensor]:
    drawn = [picture(seed) for seed in seeds]
    return [scene for scene, _ in drawn], torch.from_numpy(np.stack([image for _, image in drawn])).permute(
        0, 3, 1, 2
    )
