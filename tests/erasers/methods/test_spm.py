"""SPM: its two losses against plain differences, anchors that are what they are called, and a gate for each prompt."""

from __future__ import annotations

import copy

import pytest
import torch

from sdr1.erasers import patched
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.spm import Spm, adapters, nearness, stray
from sdr1.models import texts
from tests.erasers import checks

SMALL = {"updates": 2, "warmup": 0, "batch": 2, "steps": 3, "anchors": 2, "learning_rate": 1e-2}


@pytest.mark.parametrize("merged", [False, True])
def test_holds_for_every_method(merged, pipeline, task, tmp_path) -> None:
    checks.holds(Spm(**SMALL, merged=merged, anchors_from="retain"), pipeline, task, tmp_path / "out")


def test_fresh_adapters_are_the_base(pipeline, task) -> None:
    checks.changes_nothing(Spm(**{**SMALL, "learning_rate": 1e-30}), pipeline, task)


def test_the_first_update_is_adam_on_both_losses(pipeline, task) -> None:
    """By finite differences of the formula's losses at an adapter's factor, in float64."""
    settings = Spm(**{**SMALL, "updates": 1, "batch": 1}, anchor_weight=5.0, eta=2.0)
    after = settings(pipeline, task, Meter()).patch.tensors
    torch.manual_seed(task.seed)
    unet = copy.deepcopy(pipeline.unet)
    held, random = adapters(unet, settings), task.generator("spm")
    step = int(torch.randint(1, 3, (), generator=random))
    assert step in (1, 2)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.up.weight"
    assert not held.tensors()[name].any()
    # Adam's first step goes against the gradient's sign; a fresh adapter strays from nothing.
    moved = after[name]
    prompt = task.unsafe[int(torch.randint(2, (1,), generator=random))]
    empty, states = texts.states(pipeline, ["", prompt]).detach().double()
    unet, held = unet.double(), held.double()
    held.attach(unet)
    from sdr1.erasers.trajectories import Sampling

    sampling = Sampling(pipeline, task.sampler.__class__("DDIMScheduler", 3, 3.0), 3.0)
    noise = sampling.noise(1, random)
    latents = sampling.draw(pipeline.unet, states[None].float(), empty[None].float(), noise, step).double()

    def predict(given):
        with torch.no_grad():
            return unet(latents, sampling.times[step], encoder_hidden_states=given[None]).sample

    base, target = predict(states), 3 * predict(empty) - 2 * predict(states)
    factor = held.tensors()[name]
    for place in ((0, 0), (5, 0), (9, 0)):
        losses = []
        for sign in (1, -1):
            factor[place] = sign * 1e-3
            losses.append(((predict(states) - target) ** 2).mean())
        factor[place] = 0
        assert torch.sign(moved[place]) == -torch.sign(losses[0] - losses[1])
    assert torch.equal(predict(states), base)


@torch.no_grad()
def test_stray_is_the_mean_square_of_what_changed(pipeline, task) -> None:
    unet = copy.deepcopy(pipeline.unet)
    held = adapters(unet, Spm())
    for _, each in held.items():
        torch.nn.init.normal_(each.up.weight, std=0.3)
    latents, states = torch.randn(2, 4, 8, 8), texts.states(pipeline, ["a cross", "a ring", "", "a star"])
    with held.trained_on(unet):
        found = stray(unet, held, latents, torch.tensor(400), states)
        now = [
            unet(latents[n % 2][None], 400, encoder_hidden_states=states[n][None]).sample for n in range(4)
        ]
    base = [unet(latents[n % 2][None], 400, encoder_hidden_states=states[n][None]).sample for n in range(4)]
    expected = torch.stack([((one - other) ** 2).mean() for one, other in zip(now, base)]).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-3)
    assert expected > 1e-4


@torch.no_grad()
def test_anchors(pipeline, task) -> None:
    states, empty = texts.states(pipeline, task.unsafe), texts.states(pipeline, [""])
    kept, random = texts.states(pipeline, task.retain), torch.Generator().manual_seed(0)
    many = Spm(anchors=64)._anchors(states, kept, empty, random)
    share = many.flatten(1).norm(dim=1) / states.repeat(64, 1, 1).flatten(1).norm(dim=1)
    assert 0.8 <= share.min() < 0.84
    assert 1.16 < share.max() <= 1.2 + 1e-5
    released = Spm(anchors=4, anchor_order="released")._anchors(states, kept, empty, random)
    assert [bool((each == empty[0]).all()) for each in released] == [True] * 4 + [False] * 4
    # The chance of a prompt goes with 1 - |cosine|.
    drawn = Spm(anchors=1000, anchors_from="retain")._anchors(states[:1], kept, empty, random)
    chances = torch.stack(
        [1 - (each * states[0]).sum().abs() / (each.norm() * states[0].norm()) for each in kept]
    )
    shares = torch.stack([(drawn == each).all(2).all(1).float().mean() for each in kept])
    torch.testing.assert_close(shares, chances / chances.sum(), rtol=0.2, atol=0.02)


def test_a_prompt_is_patched_by_how_near_it_is(pipeline, task) -> None:
    """Each sample of a call by its own gate, its empty half by the same; weights with that share of the product say so too."""
    settings = Spm(**{**SMALL, "learning_rate": 0.1}, nearness="centred", power=2)
    erased = settings(pipeline, task, Meter())
    empty, word, *given = texts.states(pipeline, ["", "square", "a square", "a blue ring"]).detach()
    cosines = []
    for each in given:
        one, other = (each - empty)[1:].flatten(), (word - empty)[1:].flatten()
        cosines.append(max(float(one @ other / one.norm() / other.norm()), 0.0))
    found = nearness(torch.stack(given), word[None], empty[None], "centred")
    assert found.tolist() == pytest.approx(cosines, rel=1e-3)
    flat = nearness(torch.stack([word, given[0]]), word[None], empty[None], "flat")
    assert float(flat[0]) == pytest.approx(1, abs=1e-5)
    latents, states = torch.randn(4, 4, 8, 8), torch.stack([empty, empty, *given])
    expected = []
    with torch.no_grad():
        for sample, state, gate in zip(latents, states, cosines * 2):
            unet = copy.deepcopy(pipeline.unet)
            held = adapters(unet, settings)
            held.load(erased.patch.tensors, "spm")
            for name, each in held.items():
                unet.get_submodule(name).weight += gate**2 * each.weight()
            expected.append(unet(sample[None], 500, encoder_hidden_states=state[None]).sample)
        patched.install(erased.patch, erased.pipeline)
        answer, base = (
            each.unet(latents, 500, encoder_hidden_states=states).sample
            for each in (erased.pipeline, pipeline)
        )
    torch.testing.assert_close(answer, torch.cat(expected), rtol=1e-3, atol=1e-5)
    assert (answer - base).abs().max() > 1e-3
