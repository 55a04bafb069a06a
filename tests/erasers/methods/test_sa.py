"""SA: the Fisher information against gradients that are summed by hand, and the loss against its formula."""

from __future__ import annotations

import copy

import torch

from sdr1.erasers import layers
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods import sa
from sdr1.erasers.methods.sa import Sa, distance
from sdr1.erasers.trajectories import Sampling
from tests.erasers import checks

SMALL = {
    "surrogates": 2,
    "replays": 2,
    "fisher_samples": 1,
    "fisher_times": 2,
    "batch": 2,
    "updates": 2,
    "learning_rate": 1e-3,
}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    checks.holds(Sa(**SMALL), pipeline, task, tmp_path / "out")


def test_fisher_is_the_mean_of_squared_sums(pipeline, task, monkeypatch) -> None:
    monkeypatch.setattr(sa, "_TIMES_AT_ONCE", 2)
    settings, unet = Sa(fisher_times=5), copy.deepcopy(pipeline.unet)
    sampling = Sampling(pipeline, task.sampler, 2.0)
    states = torch.cat([checks.states(pipeline, prompt) for prompt in task.retain])
    latents, which = sampling.noise(2, torch.Generator().manual_seed(1)), torch.tensor([2, 0])
    trained = list(layers.select(unet, "noxattn").values())
    found = settings._fisher(
        unet, trained, sampling, latents, states, which, torch.Generator().manual_seed(2)
    )
    random = torch.Generator().manual_seed(2)
    expected = [torch.zeros_like(each) for each in trained]
    for latent, prompt in zip(latents, which):
        loss = 0
        for part in torch.randperm(1000, generator=random)[:5].split(2):
            noise = torch.randn(len(part), 4, 8, 8, generator=random)
            for time, each in zip(part, noise):
                noisy = pipeline.scheduler.add_noise(latent[None], each[None], time[None])
                predicted = unet(noisy, time, states[prompt : prompt + 1]).sample
                loss = loss + 1000 / 5 * ((predicted - each) ** 2).mean()
        for total, slope in zip(expected, torch.autograd.grad(loss, trained)):
            total += slope**2 / 2
    # The innermost self-attention sees one place: what its queries and keys have is rounding.
    rounding = 1e-9 * max(float(each.max()) for each in expected)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=max(rounding, 1e-4 * float(other.max())))


def test_first_update_goes_against_the_formulas_gradient(pipeline, alone, seen) -> None:
    settings, meter = Sa(**{**SMALL, "updates": 1}), Meter()
    after = settings(pipeline, alone, meter).pipeline.unet
    assert meter.spent == settings.unet_evaluations(alone)
    unsafe, neutral, safe = (
        checks.states(pipeline, prompt).repeat(2, 1, 1)
        for prompt in (alone.unsafe[0], alone.neutral[0], alone.retain[0])
    )
    torch.testing.assert_close(seen.pools[0][0], neutral)
    torch.testing.assert_close(seen.pools[1][0], safe)
    (_, *surrogate), (_, *replay) = seen.noised

    def loss(unet):
        """At the base the penalty has no gradient."""
        total = 0
        for (noisy, times, noise), states in ((surrogate, unsafe), (replay, safe)):
            total = total + ((unet(noisy.double(), times, states.double()).sample - noise) ** 2).mean()
        return total

    checks.descends(pipeline.unet, after, loss)


def test_penalty_is_the_formula_and_holds_the_weights(pipeline, task) -> None:
    now, was, weight = ([torch.tensor(each)] for each in ([1.0, 4.0], [3.0, 4.5], [0.5, 8.0]))
    assert float(distance(now, was, weight)) == 0.5 * 4 + 8 * 0.25
    moved = []
    for penalty in (0.0, 1e9):
        unet = Sa(**{**SMALL, "updates": 5, "batch": 1}, penalty=penalty)(
            pipeline, task, Meter()
        ).pipeline.unet
        name = "mid_block.resnets.0.conv1.weight"
        moved.append((unet.get_parameter(name) - pipeline.unet.get_parameter(name)).norm())
    assert moved[1] < 0.7 * moved[0]
