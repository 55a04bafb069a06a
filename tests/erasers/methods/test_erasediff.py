"""EraseDiff: the first update goes against the gradient of its loss, written out; lambda is the formula's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.erasediff import EraseDiff
from tests.erasers import checks

SMALL = {"images": 2, "batch": 2, "updates": 2, "learning_rate": 1e-3}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    erased = checks.holds(EraseDiff(**SMALL), pipeline, task, tmp_path / "out")
    after = dict(erased.pipeline.unet.named_parameters())
    for name, held in pipeline.unet.named_parameters():
        assert torch.equal(held, after[name]) or ".attn2." not in name


@pytest.mark.parametrize("pseudo", ["a cross", None])
def test_first_update_goes_against_the_formulas_gradient(pseudo, pipeline, alone, seen) -> None:
    settings = EraseDiff(**{**SMALL, "updates": 1}, pseudo=pseudo, weight=3.0)
    meter = Meter()
    after = settings(pipeline, alone, meter).pipeline.unet
    assert meter.spent == settings.unet_evaluations(alone)
    unsafe, other, safe = (
        checks.states(pipeline, prompt).repeat(2, 1, 1).double()
        for prompt in (alone.unsafe[0], pseudo or alone.neutral[0], alone.retain[0])
    )
    torch.testing.assert_close(seen.pools[0][0].double(), unsafe)
    torch.testing.assert_close(seen.pools[1][0].double(), safe)
    (_, gone, gone_times, _), (_, kept, kept_times, noise) = seen.noised

    def loss(unet):
        given = unet(gone.double(), gone_times, unsafe).sample
        target = unet(gone.double(), gone_times, other).sample.detach()
        rest = unet(kept.double(), kept_times, safe).sample - noise
        return (rest**2).mean() + 3.0 * ((given - target) ** 2).mean()

    checks.descends(pipeline.unet, after, loss)


def test_adaptive_weight_is_the_formula() -> None:
    one, other = (
        [torch.tensor([3.0, 0.0]), torch.tensor([4.0])],
        [torch.tensor([0.0, 1.0]), torch.tensor([1.0])],
    )
    cosine = 4 / (5 * 2**0.5)
    assert EraseDiff(balance="adaptive", slack=1.0)._weight(one, other) == pytest.approx(1 - cosine)
    assert EraseDiff(balance="adaptive")._weight(one, other) == 0


def test_needs_prompts_to_keep(pipeline, task) -> None:
    with pytest.raises(UserError, match="--prompts: erasediff draws prompts to keep and there are none"):
        EraseDiff()(pipeline, replace(task, retain=()), Meter())
