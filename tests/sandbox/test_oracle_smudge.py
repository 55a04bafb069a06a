"""The oracle reads a blurred shape and does not read a smudge."""

from __future__ import annotations

import numpy as np
import torch

from sdr1.recipe.data import to_bytes, to_unit
from sdr1.recipe.oracle import blur, exact_share, smudge
from sdr1.sandbox import ORACLE
from sdr1.sandbox.oracle import Oracle
from sdr1.sandbox.world import picture


def test_blurred_shapes_are_read_and_smudges_are_not():
    oracle = Oracle.load(ORACLE)
    scenes, pixels = zip(*(picture(21_000_000 + n) for n in range(300)), strict=True)
    drawn = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    assert exact_share(oracle, list(scenes), to_bytes(blur(to_unit(drawn), 0.9))) >= 0.98
    real, smudged = zip(*(smudge(50_000 + n) for n in range(300)), strict=True)
    assert exact_share(oracle, list(real), torch.from_numpy(np.stack(smudged)).permute(0, 3, 1, 2)) >= 0.97
