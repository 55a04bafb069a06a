"""Pools of latents: each is the pipeline's own drawing, the noise is its scheduler's, and every prompt has its turn."""

from __future__ import annotations

from collections import Counter

import torch

from sdr1.erasers.trajectories import Sampling, flipped, turns
from sdr1.models import texts


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
