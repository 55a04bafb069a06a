"""Live bytes of a call by hand: what it makes counts, what it was given does not."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from sdr1.planning.costs import cuda_norms, measure


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


def test_norms_as_on_a_gpu_hold_their_input_in_float32():
    norm, given = torch.nn.LayerNorm(8), torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    with cuda_norms(norm):
        held = norm(given).grad_fn._saved_input
    assert held.dtype == torch.float32
    assert norm.to(torch.bfloat16)(given).dtype == torch.bfloat16, "outside nothing is changed"


def test_a_convolution_on_a_gpu_holds_its_input_twice():
    layers = [torch.nn.Conv2d(*channels, kernel_size=1) for channels in ((1, 8), (8, 2))]
    given = torch.zeros(1, 1, 16, 16)
    with torch.no_grad():
        peaks = [measure(lambda: layers[1](layers[0](given)), cuda)[1] for cuda in (False, True)]
    plane = 16 * 16 * 4
    assert peaks == [(8 + 2) * plane, (8 + 2 + 8) * plane]


class Block(torch.nn.Module):
    """A residual layer, 64 times as wide within."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            torch.nn.LayerNorm(8),
            torch.nn.Linear(8, 512),
            torch.nn.Linear(512, 8),
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.down(torch.nn.functional.gelu(self.up(self.norm(hidden))))


def test_what_checkpointing_lets_go_of_is_not_counted():
    def peak(count: int) -> int:
        blocks = [Block() for _ in range(count)]

        def call() -> None:
            hidden = torch.zeros(100, 8)
            for block in blocks:
                hidden = checkpoint(block, hidden, use_reentrant=False)
            hidden.sum().backward()

        call()
        return measure(call)[1]

    # Of each block its output is held, and of one block at a time what lies within.
    assert peak(10) - peak(2) < 8 * 100 * 8 * 4 * 2
