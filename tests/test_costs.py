"""Live bytes of a call by hand: what it makes counts, what it was given does not."""

from __future__ import annotations

import torch

from sdr1.costs import measure


def test_a_view_of_a_weight_is_not_counted():
    layers = [torch.nn.Linear(64, 64, bias=False) for _ in range(8)]
    given = torch.zeros(4, 64)

    def call() -> torch.Tensor:
        out = given
        for layer in layers:
            out = layer(out)
        return out

    with torch.no_grad():
        flops, peak = measure(call)
    assert flops == 8 * 2 * 4 * 64 * 64
    # A layer's output, and the one before that it is made of.
    assert peak == 2 * 4 * 64 * 4
