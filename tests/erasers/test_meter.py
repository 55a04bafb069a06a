"""The meter: samples, not calls; a gradient counts three; copies count; the budget holds before the work is done."""

from __future__ import annotations

import copy

import pytest
import torch

from sdr1.erasers.meter import Meter, OutOfBudget


def call(unet, size, **given):
    states = torch.zeros(size, 77, 16)
    return unet(torch.zeros(size, 4, 8, 8), 10, encoder_hidden_states=states, **given)


def test_counts_samples_and_gradients(pipeline) -> None:
    seen = []
    meter, unet = Meter(None, seen.append), copy.deepcopy(pipeline.unet).requires_grad_(False)
    with meter.watching(unet):
        call(unet, 3)
        other = copy.deepcopy(unet)
        call(other, 2)
        other.conv_out.bias.requires_grad_(True)
        call(other, 2)
        with torch.no_grad():
            call(other, 2)
        unet(torch.zeros(1, 4, 8, 8, requires_grad=True), 10, encoder_hidden_states=torch.zeros(1, 77, 16))
    call(unet, 5)
    assert seen == [3, 2, 6, 2, 3]
    assert meter.spent == 16


def test_refuses_before_the_budget_is_passed(pipeline) -> None:
    meter = Meter(7)
    with meter.watching(pipeline.unet), torch.no_grad():
        call(pipeline.unet, 4)
        with pytest.raises(
            OutOfBudget, match="--budget: 7: 4 UNet evaluations are spent and the next step takes 4"
        ):
            call(pipeline.unet, 4)
        call(pipeline.unet, 3)
    assert meter.spent == 7
    assert meter.affords(0)
    assert not meter.affords(1)
    assert Meter(100).affordable(50, 3) == 33
    assert Meter().affordable(50, 3) == 50


def test_the_first_piece_of_work_has_to_be_paid_for() -> None:
    for ask in (lambda meter: meter.affords(8), lambda meter: meter.affordable(5, 8)):
        with pytest.raises(
            OutOfBudget, match="--budget: 7: 0 UNet evaluations are spent and the next step takes 8"
        ):
            ask(Meter(7))
        begun = Meter(7)
        assert begun.affords(7)
        assert not ask(begun)
    assert Meter(7).affordable(0, 8) == 0
