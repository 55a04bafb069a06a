"""CASteer: the turn is the formula, its vectors are means that a plain loop finds, and b = 0 is the base."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.casteer import Casteer, steer
from sdr1.models import texts
from tests.erasers import checks

SMALL = {"pairs": 3, "batch": 2, "guidance": 2.0}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    checks.holds(
        Casteer(**SMALL), pipeline, replace(task, sampler=replace(task.sampler, steps=2)), tmp_path / "out"
    )


def test_no_strength_is_the_base(pipeline, task) -> None:
    short = replace(task, sampler=replace(task.sampler, steps=2))
    checks.changes_nothing(Casteer(**SMALL, strength=0), pipeline, short)


@pytest.mark.parametrize("strength", [0.0, 1.0, 1.5, 2.0])
def test_turn_is_the_formula(strength) -> None:
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(6, dtype=torch.float64), dim=0)
    found = steer(tokens, direction, strength)
    for old, new in zip(tokens.flatten(0, 1), found.flatten(0, 1)):
        share = max(float(old @ direction), 0.0)
        turned = old - strength * share * direction
        torch.testing.assert_close(new, turned * old.norm() / turned.norm())
    if strength == 2:
        torch.testing.assert_close(
            (found @ direction),
            -(tokens @ direction).abs().where(tokens @ direction > 0, -(tokens @ direction)),
        )


def test_vectors_are_the_mean_difference(pipeline, task) -> None:
    """Two pairs, two steps: a loop of its own that guides, steps and looks at one layer."""
    short = replace(task, sampler=replace(task.sampler, steps=2))
    settings = Casteer(pairs=2, batch=2, guidance=2.0)
    meter = Meter()
    patch = settings(pipeline, short, meter).patch
    assert meter.spent == settings.unet_evaluations(short) == 2 * 2 * 2 * 2
    name = "up_blocks.1.attentions.1.transformer_blocks.0.attn2"
    seen: list[torch.Tensor] = []
    handle = pipeline.unet.get_submodule(name).register_forward_hook(
        lambda _, __, output: seen.append(output[0])
    )
    random = task.generator("casteer")
    noise = torch.randn(2, 4, 8, 8, generator=random)
    empty = texts.states(pipeline, [""]).detach()
    total = torch.zeros(2, 16)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    for sign, prompts in ((1, task.unsafe), (-1, task.neutral)):
        for each, prompt in enumerate(prompts):
            scheduler.set_timesteps(2)
            latents, states = noise[each : each + 1], texts.states(pipeline, [prompt]).detach()
            for step, time in enumerate(scheduler.timesteps):
                with torch.no_grad():
                    without = pipeline.unet(latents, time, empty).sample
                    given = pipeline.unet(latents, time, states).sample
                total[step] += sign * seen[-1].mean(0) / 2
                latents = scheduler.step(without + 2.0 * (given - without), time, latents).prev_sample
    handle.remove()
    expected = torch.nn.functional.normalize(total, dim=-1)
    torch.testing.assert_close(patch.tensors[name], expected, rtol=1e-2, atol=1e-3)
    assert patch.tensors["times"].tolist() == scheduler.timesteps.tolist()
