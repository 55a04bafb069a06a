"""FMN: the loss against probabilities that are computed by hand, and the first update against the loss's gradient."""

from __future__ import annotations

import pytest
import torch

from sdr1.erasers import maps
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.fmn import Fmn, attention
from tests.erasers import checks

SMALL = {"images": 2, "batch": 2, "updates": 2, "learning_rate": 1e-3}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    checks.holds(Fmn(**SMALL), pipeline, task, tmp_path / "out")


def _norms(unet, latents, times, states, places) -> torch.Tensor:
    """Of each sample, from the layers' own inputs: softmax(q k' / sqrt(d)) at some places, number by number."""
    inputs = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: inputs.update({name: args[0]}), with_kwargs=True
        )
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    ]
    unet(latents, times, states)
    for handle in handles:
        handle.remove()
    total = torch.zeros(len(latents), dtype=latents.dtype)
    for name, given in inputs.items():
        module = unet.get_submodule(name)
        query, key = given @ module.to_q.weight.T, states @ module.to_k.weight.T
        width = query.shape[-1] // module.heads
        for head in range(module.heads):
            part = slice(head * width, (head + 1) * width)
            found = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / width**0.5, -1)
            total = total + (found[..., places] ** 2).sum((1, 2))
    return total.sqrt()


@pytest.mark.parametrize("tokens", ["words", "both"])
def test_first_update_goes_against_the_formulas_gradient(tokens, pipeline, alone, seen) -> None:
    """Of `a photo of a red square beside a ring` the concept's word stands at 6, and the end at 10."""
    places = [6] if tokens == "words" else [6, *range(10, 77)]
    settings = Fmn(**{**SMALL, "updates": 1}, tokens=tokens)
    meter = Meter()
    after = settings(pipeline, alone, meter).pipeline.unet
    assert meter.spent == settings.unet_evaluations(alone)
    states = checks.states(pipeline, f"a photo of {alone.unsafe[0]}").repeat(2, 1, 1)
    torch.testing.assert_close(seen.pools[0][0], states)
    ((_, noisy, times, _),) = seen.noised
    meant = torch.zeros(2, 77)
    meant[:, places] = 1
    with maps.recorded(pipeline.unet) as found, torch.no_grad():
        pipeline.unet(noisy, times, states)
    expected = _norms(pipeline.unet, noisy, times, states, places).mean()
    torch.testing.assert_close(attention(found, meant), expected, rtol=1e-4, atol=1e-5)
    checks.descends(
        pipeline.unet,
        after,
        lambda unet: _norms(unet, noisy.double(), times, states.double(), places).mean(),
    )
