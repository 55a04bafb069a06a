"""SLD: its guidance is the formula on random numbers, and the stock pipeline with the patch makes the formula's latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from sdr1.base.errors import UserError
from sdr1.erasers import patched
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.sld import Constants, Sld, guidance
from sdr1.models import texts
from tests.erasers import checks


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    erased = checks.holds(Sld(variant="max"), pipeline, task, tmp_path / "out")
    assert not torch.equal(checks.draw(erased.pipeline, "a square"), checks.draw(pipeline, "a square"))


def test_no_strength_is_the_base(pipeline, task) -> None:
    checks.changes_nothing(Sld(variant="max", strength=0), pipeline, task)


@pytest.mark.parametrize("clamp", ["code", "paper"])
@pytest.mark.parametrize("variant", ["weak", "medium", "strong", "max"])
def test_guidance_is_the_formula(variant, clamp) -> None:
    scale, threshold, share, beta = {
        "weak": (20, 0, 0, 0),
        "medium": (1000, 0.01, 0.3, 0.4),
        "strong": (2000, 0.025, 0.5, 0.7),
        "max": (5000, 1, 0.5, 0.7),
    }[variant]
    rng = np.random.default_rng(0)
    momentum = np.zeros((2, 4, 3, 3))
    ours = torch.zeros(2, 4, 3, 3, dtype=torch.float64)
    for _ in range(3):
        without, given, unsafe = rng.normal(0, 0.5, (3, 2, 4, 3, 3))
        taken, ours = guidance(
            *map(torch.tensor, (without, given, unsafe)), ours, Constants(variant=variant, clamp=clamp)
        )
        expected = np.zeros_like(momentum)
        for place in np.ndindex(momentum.shape):
            difference = given[place] - unsafe[place]
            factor = scale * abs(difference)
            factor = min(factor, 1) if clamp == "code" else max(factor, 1)
            if difference >= threshold:
                factor = 0
            expected[place] = factor * (unsafe[place] - without[place]) + share * momentum[place]
        momentum = beta * momentum + (1 - beta) * expected
        np.testing.assert_allclose(taken.numpy(), expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours.numpy(), momentum, rtol=1e-9, atol=1e-12)


def test_the_pipeline_draws_the_formula(pipeline, task) -> None:
    """Its own loop over five steps, of which the first two are warm-up, for two prompts at once."""
    settings = Sld(variant="strong", warmup=0.4, strength=1.5)
    erased = settings(pipeline, task, Meter())
    prompts = ["a red square", "a ring"]
    empty, concept, *given = texts.states(pipeline, ["", "an image showing square", *prompts]).detach()
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(5)
    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1)])
    momentum = torch.zeros_like(latents)

    def predicted(states):
        with torch.no_grad():
            return pipeline.unet(latents, time, encoder_hidden_states=states).sample

    for step, time in enumerate(scheduler.timesteps):
        without, unsafe = (predicted(each.expand(2, -1, -1)) for each in (empty, concept))
        wanted = predicted(torch.stack(given))
        mask = (2000 * (wanted - unsafe).abs()).clamp(max=1) * (wanted - unsafe < 0.025)
        taken = mask * (unsafe - without) + 0.5 * momentum
        momentum = 0.7 * momentum + 0.3 * taken
        guided = wanted - without - (1.5 * taken if step >= 2 else 0)
        latents = scheduler.step(without + 2.0 * guided, time, latents).prev_sample
    patched.install(erased.patch, erased.pipeline)
    found = checks.draw(erased.pipeline, prompts, steps=5)
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-4)


def test_every_drawing_begins_without_momentum(pipeline, task) -> None:
    """Of one step, whose timestep is no higher than the last one's, or after a drawing that was broken off."""
    erased = Sld(variant="max")(pipeline, task, Meter())
    patched.install(erased.patch, erased.pipeline)
    for steps in (1, 2):
        alone = checks.draw(erased.pipeline, "a red square", steps)
        checks.draw(erased.pipeline, "a ring", steps)
        assert torch.equal(checks.draw(erased.pipeline, "a red square", steps), alone)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erased.pipeline("a ring", num_inference_steps=2, guidance_scale=2.0, callback_on_step_end=stop)
    assert torch.equal(checks.draw(erased.pipeline, "a red square"), alone)


def test_no_picture_is_drawn_without_it(pipeline, task) -> None:
    """It is a part of classifier-free guidance against the empty prompt; without, the base would be drawn under its name."""
    erased = Sld(variant="max")(pipeline, task, Meter())
    patched.install(erased.patch, erased.pipeline)
    for options in ({"guidance_scale": 1.0}, {"guidance_scale": 0.0}, {"negative_prompt": "a square"}):
        with pytest.raises(UserError, match=r"patch: sld: .*guidance_scale above 1 and no negative prompt"):
            erased.pipeline("a red square", num_inference_steps=1, output_type="latent", **options)
    for scale in (1.0, 0.0):
        with pytest.raises(UserError, match=rf"sampler.guidance_scale: {scale}: .*sld.*above 1"):
            patched.check_guidance(erased.pipeline, scale, "sampler.guidance_scale")
    patched.check_guidance(erased.pipeline, 1.01, "sampler.guidance_scale")
    patched.check_guidance(pipeline, 1.0, "sampler.guidance_scale")


def test_warmup_is_the_papers_delta() -> None:
    """At 50 steps of DDIM the share begins at the step that the paper names."""
    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(50)
    for variant, delta in (("weak", 15), ("medium", 10), ("strong", 7), ("max", 0)):
        share = Constants(variant=variant).warmup
        assert sum(int(time) >= 1000 * (1 - share) for time in scheduler.timesteps) == delta


def test_what_is_given_comes_before_the_variants() -> None:
    assert (Sld(variant="weak", scale=5).scale, Sld(variant="weak").warmup) == (5, 0.3)
