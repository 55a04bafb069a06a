"""DoCo: both losses and the surgery of gradients against their formulas, and the first update against the whole gradient."""

from __future__ import annotations

import copy

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods import doco
from sdr1.erasers.methods.doco import DoCo, clipped, fooling, telling
from tests.erasers import checks

SMALL = {
    "images": 2,
    "steps": 2,
    "widths": (8, 16),
    "batch": 2,
    "alone": 1,
    "updates": 2,
    "learning_rate": 1e-3,
}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    erased = checks.holds(DoCo(**SMALL), pipeline, task, tmp_path / "out")
    after = dict(erased.pipeline.unet.named_parameters())
    for name, held in pipeline.unet.named_parameters():
        assert torch.equal(held, after[name]) != name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))


def test_losses_are_the_formulas() -> None:
    fake, real = torch.tensor([[0.3, -2.0]]), torch.tensor([[1.5, 0.2]])
    loss = -torch.log(torch.sigmoid(fake)).mean() - torch.log(1 - torch.sigmoid(real)).mean()
    torch.testing.assert_close(telling(lambda x: x, fake, real), loss)
    torch.testing.assert_close(fooling(lambda x: x, fake), -torch.log(1 - torch.sigmoid(fake)).mean())


def test_surgery_removes_what_is_against_the_prior() -> None:
    wanted = torch.tensor([3.0, -4.0]), torch.tensor([1.0, 1.0])
    prior = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    whole = DoCo(removal=1.0).combined(wanted, prior)
    assert [each.tolist() for each in whole] == [[3.0, 0.0], [1.0, 1.0]]
    part = DoCo(removal=0.5, prior_weight=0.25).combined(wanted, prior)
    assert [each.tolist() for each in part] == [[3.0, -1.5], [1.25, 1.0]]
    # cos p / |p|, with the cosine -4/5: the code's.
    released = DoCo(removal=1.0, surgery="released").combined(wanted, prior)
    torch.testing.assert_close(released[0], torch.tensor([3.0, -4.0 + 0.8]))
    torch.testing.assert_close(torch.cat(clipped(wanted, 1.0)).norm(), torch.tensor(1.0))
    assert all(torch.equal(one, other) for one, other in zip(clipped(wanted, 9.0), wanted))


def test_first_update_goes_against_the_formulas_gradient(pipeline, alone, seen, monkeypatch) -> None:
    kept = []

    def keep(discriminator, *pictures):
        kept.append((copy.deepcopy(discriminator), *pictures))
        return (telling if len(pictures) == 2 else fooling)(discriminator, *pictures)

    monkeypatch.setattr(doco, "telling", keep)
    monkeypatch.setattr(doco, "fooling", keep)
    settings = DoCo(
        **{**SMALL, "alone": 0, "updates": 1}, flip=False, removal=0, prior_weight=0.3, max_norm=1e6
    )
    meter = Meter()
    after = settings(pipeline, alone, meter).pipeline.unet
    assert meter.spent == settings.unet_evaluations(alone)
    unsafe, neutral = (
        checks.states(pipeline, prompt).repeat(2, 1, 1).double()
        for prompt in (alone.unsafe[0], alone.neutral[0])
    )
    torch.testing.assert_close(seen.pools[0][0].double(), neutral)
    (_, noisy, times, _), (_, other, other_times, noise) = seen.noised
    bars = pipeline.scheduler.alphas_cumprod[times].double().view(2, 1, 1, 1)

    def x0(unet, states):
        return (noisy - (1 - bars).sqrt() * unet(noisy.double(), times, states).sample) / bars.sqrt()

    (_, fake, real), (judge, _) = kept
    with torch.no_grad():
        base = copy.deepcopy(pipeline.unet).double()
        torch.testing.assert_close(fake.double(), x0(base, unsafe), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(real.double(), x0(base, neutral), rtol=1e-3, atol=1e-3)

    def loss(unet):
        prior = ((unet(other.double(), other_times, neutral).sample - noise) ** 2).mean()
        return fooling(judge.double(), x0(unet, unsafe)) + 0.3 * prior

    checks.descends(pipeline.unet, after, loss)


def test_too_many_convolutions_are_refused(pipeline, task) -> None:
    with pytest.raises(UserError, match=r"widths: \[64, 128, 256, 512\]: each halves the latents' side of 8"):
        DoCo()(pipeline, task, Meter())
