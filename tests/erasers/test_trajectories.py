"""Pools of latents: each is the pipeline's own drawing, the noise is its scheduler's, and every prompt has its turn."""

from __future__ import annotations

from collections import Counter
from importlib import import_module

import pytest
import torch

from sdr1.erasers.meter import Meter
from sdr1.erasers.methods import METHODS
from sdr1.erasers.trajectories import Sampling, flipped, turns
from sdr1.models import texts
from sdr1.models.pipeline import sha256


def test_a_pool_holds_the_pipelines_own_drawings(pipeline, task) -> None:
    sampling = Sampling(pipeline, task.sampler, 2.0)
    empty, states = texts.states(pipeline, [""]).detach(), texts.states(pipeline, task.retain).detach()
    random = torch.Generator().manual_seed(1)
    which, noise = turns(3, 20, random), sampling.noise(20, random)
    drawn = sampling.pool(pipeline.unet, states, which, empty, noise)
    assert drawn.shape == noise.shape
    for place in (0, 17):
        alone = pipeline(
            task.retain[which[place]],
            latents=noise[place : place + 1].clone(),
            num_inference_steps=4,
            guidance_scale=2.0,
            output_type="latent",
        ).images
        torch.testing.assert_close(drawn[place : place + 1], alone, rtol=1e-4, atol=1e-5)


def test_noise_is_the_schedulers(pipeline, task) -> None:
    sampling, random = Sampling(pipeline, task.sampler, 2.0), torch.Generator().manual_seed(2)
    latents = sampling.noise(300, random)
    noisy, times, noise = sampling.noised(latents, random)
    torch.testing.assert_close(noisy, pipeline.scheduler.add_noise(latents, noise, times))
    assert 0 <= int(times.min()) < 50
    assert 950 < int(times.max()) < 1000


def test_every_prompt_has_its_turn() -> None:
    found = turns(7, 17, torch.Generator().manual_seed(3)).tolist()
    assert set(Counter(found).values()) == {2, 3}
    assert found[:7] != found[7:14]


def test_half_is_turned() -> None:
    latents = torch.arange(400.0).view(100, 1, 1, 4)
    found = flipped(latents, torch.Generator().manual_seed(4))
    turned = (found != latents).any(-1).flatten()
    assert torch.equal(found[turned], latents[turned].flip(-1))
    assert 30 < int(turned.sum()) < 70


def test_a_target_is_what_the_unet_was_trained_to_predict(pipeline, task) -> None:
    random = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 5, 4, 8, 8), generator=random)
    times = torch.tensor([0, 3, 500, 998, 999])
    velocity = pipeline.scheduler.get_velocity(latents, noise, times)
    for kind, expected in {"epsilon": noise, "sample": latents, "v_prediction": velocity}.items():
        found = Sampling(of_kind(pipeline, kind), task.sampler, 1.0).target(latents, noise, times)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("module", ["ca", "doco", "erasediff", "sa", "safetydpo"])
def test_losses_against_the_noise_are_in_the_models_own_terms(module, pipeline, task, monkeypatch) -> None:
    """A model that predicts velocities learns velocities."""
    method = next(each for each in METHODS.values() if each.__module__.endswith(f".{module}"))
    small = import_module(f"tests.erasers.methods.test_{module}").SMALL
    target, kinds = Sampling.target, set()

    def seen(self, latents, noise, times):
        kinds.add(self._prediction_type)
        return target(self, latents, noise, times)

    monkeypatch.setattr(Sampling, "target", seen)
    learned = [
        method(**small)(of_kind(pipeline, kind), task, Meter()).pipeline
        for kind in ("epsilon", "v_prediction")
    ]
    assert kinds == {"epsilon", "v_prediction"}
    assert sha256(learned[0]) != sha256(learned[1])


def of_kind(pipeline, kind):
    """The pipeline, told that its UNet predicts something else."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, prediction_type=kind)
    return type(pipeline)(**{**pipeline.components, "scheduler": scheduler}, requires_safety_checker=False)
