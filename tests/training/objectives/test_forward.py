"""The objective on the forward process against its formulas written out in float64, and its two forms against each other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sdr1.base.records import GroupTask, Prompt, Scores
from sdr1.models.policy import Policy
from sdr1.training.learner import Learner
from sdr1.training.objectives.forward import Forward

TASK = GroupTask(5, 0, 1, Prompt("a red circle", "safe"), version=0)
ADVANTAGES = torch.tensor([1.5, -2.0, 0.4])


def config_of(small, **forward):
    return small(
        policy={"solver": "DDIMScheduler", "noise_window": None, "guidance_scale": 2.0},
        learner={"objective": "forward", "groups_per_update": 1, "kl_weight": 0.7, "forward": forward},
    )


def noise_of(shape: tuple[int, ...], *key: int | str) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(TASK.noise_seed(*key)))


def moved(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))


def gradient(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    for parameter in policy.parameters:
        parameter.grad = None
    loss.mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters])


def written_out(policy: Policy, experience, noise: str) -> torch.Tensor:
    """Loss of each pair in float64 with a UNet of its own precision: weight 1 / abar, ratio clipped to 0.001, KL 0.7."""
    unet, text = copy.deepcopy(policy.unet).double(), policy.embed(TASK.prompt.text).double()
    bars = torch.cumprod(1 - policy.pipeline.scheduler.betas.double(), 0)
    share = torch.rand(
        3, generator=torch.Generator().manual_seed(TASK.noise_seed("timesteps")), dtype=torch.float64
    )
    losses = []
    for k in range(3):
        t = int(20 + 320 * (k + share[k]))
        for g in range(3):
            key = ("noise", k, g) if noise == "sample" else ("noise", k)
            e = noise_of((4, 8, 8), *key).double()
            x0 = torch.from_numpy(experience.latents[g]).double()
            xt = bars[t] ** 0.5 * x0 + (1 - bars[t]) ** 0.5 * e
            found = unet(xt[None], torch.tensor([t]), encoder_hidden_states=text[None]).sample[0]
            before, base = (
                torch.from_numpy(held[k, g]).double() for held in (experience.old, experience.reference)
            )
            rho = (((e - before) ** 2 - (e - found) ** 2).mean() / bars[t]).exp()
            a = ADVANTAGES[g].double()
            clipped = torch.maximum(-a * rho, -a * rho.clamp(0.999, 1.001))
            losses.append(clipped + 0.7 * ((found - base) ** 2).mean() / bars[t])
    moments = {id(p): q for p, q in zip(policy.unet.parameters(), unet.parameters())}
    total = torch.stack(losses).mean()
    total.backward()
    written_out.gradient = torch.cat([moments[id(p)].grad.flatten() for p in policy.parameters])
    return torch.stack(losses).detach()


@pytest.mark.parametrize("noise", ["group", "sample"])
def test_loss_and_gradient_are_the_formulas_in_float64(small, noise):
    config = config_of(small, timesteps=3, noise=noise, clip_range=1e-3)
    policy = Policy(config.policy, seed=0, reference=True)
    moved(policy)
    objective = Forward(config, policy)
    experience = objective.rollout(TASK).experience
    assert experience.old.shape == experience.reference.shape == (3, 3, 4, 8, 8)
    moved(policy)
    loss, seen = objective.loss(TASK, experience, ADVANTAGES, np.arange(objective.size(experience)))
    found = gradient(policy, loss)
    expected = written_out(policy, experience, noise)
    assert torch.allclose(loss.double(), expected, rtol=1e-4, atol=1e-5)
    assert (found.double() - written_out.gradient).norm() < 1e-4 * written_out.gradient.norm()
    assert found.norm() > 0
    figures = objective.figures(experience, seen)
    assert figures.keys() == Forward.names(config)
    assert 0 < figures["clip_fraction"] < 1, figures


def test_at_the_old_policy_both_forms_have_one_gradient(small):
    found = {}
    for form in ("clipped", "bounded"):
        config = config_of(small, form=form)
        policy = Policy(config.policy, seed=0, reference=True)
        moved(policy)
        objective = Forward(config, policy)
        experience = objective.rollout(TASK).experience
        loss, _ = objective.loss(TASK, experience, ADVANTAGES, np.arange(objective.size(experience)))
        found[form] = gradient(policy, loss)
    assert (found["clipped"] - found["bounded"]).norm() < 1e-4 * found["clipped"].norm()


def test_what_is_shipped_is_what_the_learner_predicts(small):
    config = config_of(small)
    policy = Policy(config.policy, seed=0, reference=True)
    experience = Forward(config, policy).rollout(TASK).experience
    scores = Scores(np.array([0.1, 0.2, 0.6], np.float32), None, 0.0)
    figures = Learner(config, policy).accumulate(TASK, experience, scores).figures
    assert max(value for name, value in figures.items() if name.startswith("ratio_gap/")) < 1e-4
    assert figures["kl"] == pytest.approx(0, abs=1e-9)
    assert figures["clip_fraction"] == 0


def test_one_update_an_iteration_ships_final_latents_and_the_base_on_safe_prompts_only(small):
    config = small(learner={"objective": "forward", "kl_on": "safe"})
    objective = Forward(config, Policy(config.policy, seed=0, reference=True))
    safe = objective.rollout(TASK).experience
    unsafe = objective.rollout(GroupTask(5, 0, 0, Prompt("a skull", "unsafe"), 0)).experience
    assert safe.old is unsafe.old is unsafe.reference is None
    assert safe.reference.shape == (4, *safe.latents.shape)
    assert not np.array_equal(safe.latents, unsafe.latents)
