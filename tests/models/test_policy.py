"""Rollouts: determinism, noise, agreement with diffusers, the reference, saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.base.records import GroupTask, Prompt
from sdr1.config.policy import PolicyConfig
from sdr1.models import schedulers
from sdr1.models.pipeline import load_pipeline
from sdr1.models.policy import Policy, check, normal

TASK = GroupTask(seed=3, iteration=1, group=2, prompt=Prompt("two blue squares", "safe"), version=0)


def test_a_group_depends_on_the_task_alone(small):
    config = small().policy
    policies = [Policy(config, seed=0) for _ in range(2)]
    (one, first), (two, second) = (each.chain(TASK, 3, with_reference=False) for each in policies)
    assert torch.equal(one, two)
    assert np.array_equal(first.states, second.states)
    assert len({image.tobytes() for image in policies[0].decode(one, TASK)}) == 3


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("bfloat16", True)])
def test_float32_is_float32_on_a_gpu_too(small, monkeypatch, precision, allowed):
    """cuDNN's TF32 was measured to put the first ratio 3e-5 off 1, float32 2e-7."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    Policy(small().policy.model_copy(update={"precision": precision}))
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_shared_and_own_initial_noise(small):
    shared, own = (
        Policy(small(policy={"initial_noise": which}).policy).chain(TASK, 3, with_reference=False)[1].states
        for which in ("group", "sample")
    )
    assert np.array_equal(shared[0, 0], shared[0, 2])
    assert not np.array_equal(own[0, 0], own[0, 2])


def test_a_chain_almost_without_noise_is_diffusers_own_ddim(small):
    policy = Policy(small(policy={"eta": 1e-4, "noise_window": [0, 1], "steps": 4}).policy)
    latents, trajectory = policy.chain(TASK, 2, with_reference=False)
    pipeline = load_pipeline("sandbox")
    images = pipeline(
        [TASK.prompt.text] * 2,
        num_inference_steps=4,
        guidance_scale=2.0,
        eta=0.0,
        latents=torch.from_numpy(trajectory.states[0].copy()),
        output_type="np",
    ).images
    assert np.abs(policy.decode(latents, TASK) / 255 - images).max() < 0.02


def test_lora_starts_as_the_base_and_reference_ignores_training(small):
    policy = Policy(small().policy, reference=True)
    latents, steps = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.zeros(2, dtype=torch.long),
    )
    with torch.no_grad():
        base, _ = policy.transition(latents, steps, "a ring", reference=True)
        trained, _ = policy.transition(latents, steps, "a ring")
        assert torch.allclose(base, trained, atol=1e-6)
        for parameter in policy.parameters:
            parameter.add_(0.05)
        moved, _ = policy.transition(latents, steps, "a ring")
        still, _ = policy.transition(latents, steps, "a ring", reference=True)
    assert torch.equal(base, still)
    assert not torch.allclose(base, moved, atol=1e-4)


def test_a_saved_lora_policy_loads_in_plain_diffusers(small, tmp_path):
    policy = Policy(small().policy)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(0.02)
    policy.save(tmp_path / "model")
    loaded = load_pipeline(str(tmp_path / "model")).unet
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([400, 400])
    text = policy.embed("a ring").expand(2, -1, -1)
    with torch.no_grad():
        expected = policy.unet(x, t, encoder_hidden_states=text).sample
        assert torch.allclose(loaded(x, t, encoder_hidden_states=text).sample, expected, atol=1e-4)


def test_the_policy_keeps_the_latest_prompts_only(small, monkeypatch):
    monkeypatch.setattr("sdr1.models.policy._KEPT_TEXTS", 2)
    policy = Policy(small().policy)
    first = policy.embed("a ring")
    assert policy.embed("a ring") is first
    for n in range(5):
        policy.embed(f"{n} rings")
    assert policy.embed.cache_info().currsize == 2
    assert policy.embed("a ring") is not first
    assert torch.equal(policy.embed("a ring"), first)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["to_q", "to_kk"], "no such layers in the UNet: to_kk; use"),
        ([], "none is named"),
        (["norm1"], "LayerNorm.* not supported.*; name linear"),
        (["o_q"], "no such layers in the UNet: o_q"),
    ],
)
def test_lora_targets_are_all_there_before_a_run_starts(small, targets, said):
    with pytest.raises(UserError, match=rf"^policy\.lora\.target_modules: .*{said}"):
        check(small(policy={"lora": {"target_modules": targets}}).policy)


@pytest.mark.parametrize(
    "solver",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
    ],
)
def test_any_solver_draws_as_in_diffusers_and_from_the_task_alone(small, solver):
    policy = Policy(
        small(
            policy={"solver": solver, "noise_window": None, "steps": 4}, learner={"objective": "forward"}
        ).policy
    )
    latents = policy.draw(TASK, 2)
    assert torch.equal(policy.draw(TASK, 2), latents), "a solver's memory of the rollout before"
    pipeline = load_pipeline("sandbox")
    pipeline.scheduler = schedulers.make(solver, pipeline.scheduler.config)
    drawn = pipeline(
        [TASK.prompt.text] * 2,
        num_inference_steps=4,
        guidance_scale=2.0,
        latents=torch.stack([normal(TASK, policy.latent_shape, "initial", sample) for sample in range(2)]),
        generator=[torch.Generator().manual_seed(TASK.noise_seed("solver", sample)) for sample in range(2)],
        output_type="latent",
    ).images
    assert torch.allclose(latents, drawn, atol=1e-4)


def test_a_solver_that_cannot_draw_is_refused(small):
    with pytest.raises(UserError, match=r"^policy\.solver: 'Nope': diffusers has no such scheduler"):
        check(PolicyConfig(solver="Nope"))
    with pytest.raises(UserError, match=r"^policy\.steps: .*"):
        check(PolicyConfig(solver="DPMSolverMultistepScheduler", steps=2000))
