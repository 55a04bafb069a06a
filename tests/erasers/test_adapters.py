"""Adapters: nothing at first, then what their layer's weight would be; a factor for each sample; gone when they should be."""

from __future__ import annotations

import copy

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers import layers
from sdr1.erasers.adapters import Adapters, LowRank
from sdr1.erasers.meter import Meter


def predicted(unet, size=2):
    random = torch.Generator().manual_seed(0)
    latents, states = (torch.randn(size, *shape, generator=random) for shape in ((4, 8, 8), (77, 16)))
    return unet(latents, 300, encoder_hidden_states=states).sample


def made(unet, filled=True) -> Adapters:
    found = layers.transformer_layers(unet)
    adapters = Adapters({name: LowRank(layer, 2, 3.0) for name, layer in found.items()})
    if filled:
        for _, each in adapters.items():
            torch.nn.init.normal_(each.up.weight, std=0.1)
    return adapters


def test_layers_are_those_of_transformers(pipeline) -> None:
    found = layers.transformer_layers(pipeline.unet)
    # Two projections around each, four and four of attention, two of the feed-forward net.
    assert len(found) == 10 * (2 + 4 + 4 + 2)
    assert sum(isinstance(each, torch.nn.Conv2d) for each in found.values()) == 10 * 2


@torch.no_grad()
def test_fresh_ones_change_nothing_and_others_are_as_good_as_weights(pipeline) -> None:
    unet = copy.deepcopy(pipeline.unet)
    plain = predicted(unet)
    with made(unet, filled=False).trained_on(unet):
        assert torch.equal(predicted(unet), plain)
    adapters = made(unet)
    with adapters.trained_on(unet):
        beside = predicted(unet)
        with adapters.switched_off():
            assert torch.equal(predicted(unet), plain)
        adapters.factors = torch.tensor([1.0, 0.0])
        first, second = predicted(unet)
    assert torch.equal(predicted(unet), plain)
    assert unet.state_dict().keys() == pipeline.unet.state_dict().keys()
    for name, each in adapters.items():
        unet.get_submodule(name).weight += each.weight()
    merged = predicted(unet)
    assert (merged - plain).abs().max() > 1e-2
    torch.testing.assert_close(beside, merged, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first, merged[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(second, plain[1], rtol=1e-3, atol=1e-5)


def test_the_meter_sees_their_gradients(pipeline) -> None:
    unet, meter = copy.deepcopy(pipeline.unet).requires_grad_(False), Meter()
    with meter.watching(unet), made(unet).trained_on(unet) as trained:
        predicted(unet).sum().backward()
        assert meter.spent == 2 * 3
    assert all(each.grad is not None for each in trained)


def test_tensors_come_back(pipeline) -> None:
    adapters, other = made(pipeline.unet), made(pipeline.unet)
    other.load({**adapters.tensors(), "more": torch.zeros(1)}, "spm")
    assert all(torch.equal(held, other.tensors()[name]) for name, held in adapters.tensors().items())
    tensors = adapters.tensors()
    name = next(iter(tensors))
    with pytest.raises(UserError, match=f"patch: spm: {name}: does not fit this UNet"):
        other.load({**tensors, name: torch.zeros(1, 1)}, "spm")
