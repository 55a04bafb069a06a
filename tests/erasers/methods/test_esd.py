"""ESD: the loss against its formula, the parameters that move, and latents that stop where the sampler's own loop stops."""

from __future__ import annotations

import copy

import pytest
import torch

from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.esd import EsdU, EsdX, away
from sdr1.erasers.trajectories import Sampling
from sdr1.models import texts
from tests.erasers import checks

SMALL = {"updates": 2, "batch": 2, "learning_rate": 1e-3}


@pytest.mark.parametrize("kind", [EsdX, EsdU])
def test_holds_for_every_method(kind, pipeline, task, tmp_path) -> None:
    checks.holds(kind(**SMALL), pipeline, task, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "moves", "stays"),
    [
        (EsdX(**SMALL), ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"), ("attn1", "norm", "conv")),
        (EsdX(**SMALL, parameters="kv"), ("attn2.to_k", "attn2.to_v"), ("attn2.to_q", "attn2.to_out", "attn1")),
        (EsdU(**SMALL), ("attn1", "norm2", "time_emb_proj"), ("attn2.", "time_embedding", "conv_norm_out", "conv_out")),
        (EsdU(**SMALL, parameters="not-attn2"), ("attn1", "conv_out", "time_embedding"), ("attn2.", "norm")),
    ],
)  # fmt: skip
def test_parameters_that_move(settings, moves, stays, pipeline, task) -> None:
    after = dict(settings(pipeline, task, Meter()).pipeline.unet.named_parameters())
    moved = {name for name, held in pipeline.unet.named_parameters() if not torch.equal(held, after[name])}
    assert all(any(part in name for name in moved) for part in moves)
    assert not any(part in name for name in moved for part in stays)


def test_target_is_the_formula(pipeline, task) -> None:
    empty, states = texts.states(pipeline, [""]), texts.states(pipeline, task.unsafe)
    latents, time = torch.randn(2, 4, 8, 8), torch.tensor(500)
    with torch.no_grad():
        given = pipeline.unet(latents, time, states).sample
        without = pipeline.unet(latents, time, empty.expand(2, -1, -1)).sample
        found = away(pipeline.unet, latents, time, states, empty, 1.5)
    torch.testing.assert_close(found, 2.5 * without - 1.5 * given, rtol=1e-4, atol=1e-5)


def test_one_update_is_one_step_of_adam_on_the_formula(pipeline, task) -> None:
    """The gradient's sign at a trained weight decides Adam's first step: compare with finite differences of the loss."""
    settings = EsdX(updates=1, batch=1, learning_rate=1e-3, eta=2.0)
    random = task.generator("esd-x")
    step = int(torch.randint(4, (), generator=random))
    prompt = task.unsafe[int(torch.randint(2, (1,), generator=random))]
    sampling = Sampling(pipeline, task.sampler, 3.0)
    empty, states = texts.states(pipeline, [""]).detach(), texts.states(pipeline, [prompt]).detach()
    latents = sampling.draw(pipeline.unet, states, empty, sampling.noise(1, random), step)
    time = sampling.times[step]
    unet = copy.deepcopy(pipeline.unet).double()
    wide = latents.double(), time, states.double()
    with torch.no_grad():
        base = unet(*wide).sample
        target = (1 + 2.0) * unet(latents.double(), time, empty.double()).sample - 2.0 * base
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    weight = unet.get_parameter(name).data
    after = settings(pipeline, task, Meter()).pipeline.unet.get_parameter(name)
    for place in ((0, 0), (3, 5), (7, 2)):
        losses = []
        for sign in (1, -1):
            weight[place] += sign * 1e-4
            with torch.no_grad():
                losses.append(((unet(*wide).sample - target) ** 2).mean())
            weight[place] -= sign * 1e-4
        slope = (losses[0] - losses[1]) / 2e-4
        moved = after[place] - weight[place]
        # Adam's first step is the rate, less where a slope is near its epsilon.
        assert 5e-4 < float(moved * -slope.sign()) < 1.001e-3


def test_latents_stop_where_the_samplers_loop_does(pipeline, task) -> None:
    sampling = Sampling(pipeline, task.sampler, 3.0)
    empty, states = texts.states(pipeline, [""]).detach(), texts.states(pipeline, task.unsafe[:1]).detach()
    noise = sampling.noise(1, torch.Generator().manual_seed(1))
    kept = {}
    pipeline(
        task.unsafe[0],
        latents=noise.clone(),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
        callback_on_step_end=lambda _, step, __, values: kept.update({step + 1: values["latents"]}) or {},
    )
    for steps in (1, 2, 4):
        found = sampling.draw(pipeline.unet, states, empty, noise, steps)
        torch.testing.assert_close(found, kept[steps], rtol=1e-4, atol=1e-5)
    assert torch.equal(sampling.draw(pipeline.unet, states, empty, noise, 0), noise)


def test_expected_cost_is_the_mean_of_what_is_spent(pipeline, task) -> None:
    settings = EsdX(updates=8, batch=1, learning_rate=1e-6)
    meter = Meter()
    settings(pipeline, task, meter)
    assert settings.unet_evaluations(task) == 8 * (3 + 5)
    assert meter.spent == pytest.approx(8 * 8, rel=0.35)


def test_released_times_show_a_latent_at_more_noise_than_it_has(pipeline, task) -> None:
    from dataclasses import replace

    sampling = Sampling(pipeline, replace(task.sampler, steps=50), 3.0)
    settings = EsdX(times="released")
    random = torch.Generator().manual_seed(0)
    for _ in range(40):
        steps, time = settings._stop(sampling, random)
        if steps < 50:
            # The paper's code counts the sampler's times from 1.
            assert 38 <= int(time) - (int(sampling.times[steps]) - 1) <= 59
