"""Flat parameters: publishing, loading, refusing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdr1.weights import FlatParameters, sha256


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_weights_load_bit_for_bit(dtype):
    source, target = parameters((3, 4), (5,), dtype=dtype), parameters((3, 4), (5,), dtype=dtype)
    weights = FlatParameters(source).publish(1)
    weights.buffer.flags.writeable = False
    assert FlatParameters(target).load(weights.buffer) == weights.checksum
    assert all(torch.equal(a, b) for a, b in zip(source, target, strict=True))


def test_a_snapshot_is_not_touched_by_later_updates():
    mine = parameters((4,))
    flat = FlatParameters(mine)
    weights = flat.publish(0)
    before = sha256(weights)
    with torch.no_grad():
        mine[0].add_(1)
    assert sha256(weights) == before
    assert sha256(flat.publish(1)) != before


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        FlatParameters(parameters((4,))).load(np.zeros(8, np.uint8))
