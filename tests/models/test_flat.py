"""Flat parameters: publishing, loading, refusing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xxhash

from sdr1.models import flat as module
from sdr1.models.flat import FlatParameters, checksum, sha256


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_weights_load_bit_for_bit(dtype):
    source, target = parameters((3, 4), (5,), dtype=dtype), parameters((3, 4), (5,), dtype=dtype)
    weights = FlatParameters(source).publish(1)
    weights.buffer.flags.writeable = False
    assert FlatParameters(target).load(weights.buffer) == weights.checksum
    assert all(torch.equal(a, b) for a, b in zip(source, target, strict=True))


@pytest.mark.parametrize("size", [1, 1000, 1024, 3000])
def test_the_checksum_is_that_of_the_whole_buffer_and_of_what_is_in_place(monkeypatch, size):
    monkeypatch.setattr(module, "_CHUNK", 1000)
    source, target = parameters((size,)), parameters((size,))
    weights = FlatParameters(source).publish(0)
    whole = source[0].detach().numpy().view(np.uint8)
    assert weights.checksum == checksum(whole) == xxhash.xxh3_64_intdigest(whole.tobytes())
    changed = weights.buffer.copy()
    changed[-1] ^= 1
    assert FlatParameters(target).load(changed) == checksum(changed) != weights.checksum


def test_a_snapshot_is_not_touched_by_later_updates():
    mine = parameters((4,))
    flat = FlatParameters(mine)
    snapshot, weights = flat.snapshot(0), flat.publish(0)
    before = sha256(snapshot)
    assert snapshot.checksum == weights.checksum
    assert np.shares_memory(weights.buffer, mine[0].detach().numpy())
    with torch.no_grad():
        mine[0].add_(1)
    assert sha256(snapshot) == before
    assert sha256(weights) == sha256(flat.publish(1)) != before


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        FlatParameters(parameters((4,))).load(np.zeros(8, np.uint8))
