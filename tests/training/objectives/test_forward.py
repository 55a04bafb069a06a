"""The objective on the forward process against its formulas written out in float64, and its two forms against each other."""

from __future__ import annotations

import copy
from dataclasses import replace

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


class InFloat64:
    """The objective written out: weight 1 / abar, ratio clipped to 0.001, KL 0.7; the UNet in float64 too."""

    def __init__(self, policy: Policy, experience, noise: str, advantages: torch.Tensor) -> None:
        self.unet, self.text = copy.deepcopy(policy.unet).double(), policy.embed(TASK.prompt.text).double()
        self.bars = torch.cumprod(1 - policy.pipeline.scheduler.betas.double(), 0)
        self.experience, self.noise, self.advantages = experience, noise, advantages.double()
        moments = {id(p): q for p, q in zip(policy.unet.parameters(), self.unet.parameters())}
        self.parameters = [moments[id(p)] for p in policy.parameters]

    def losses(self) -> torch.Tensor:
        """Of each pair of a timestep and a sample."""
        share = torch.rand(
            3, generator=torch.Generator().manual_seed(TASK.noise_seed("timesteps")), dtype=torch.float64
        )
        losses = []
        for k in range(3):
            t = int(20 + 320 * (k + share[k]))
            for g in range(3):
                key = ("noise", k, g) if self.noise == "sample" else ("noise", k)
                e, bar = noise_of((4, 8, 8), *key).double(), self.bars[t]
                x0 = torch.from_numpy(self.experience.latents[g]).double()
                xt = bar**0.5 * x0 + (1 - bar) ** 0.5 * e
                found = self.unet(xt[None], torch.tensor([t]), encoder_hidden_states=self.text[None]).sample[
                    0
                ]
                before, base = (
                    torch.from_numpy(held[k, g]).double()
                    for held in (self.experience.old, self.experience.reference)
                )
                rho = (((e - before) ** 2 - (e - found) ** 2).mean() / bar).exp()
                a = self.advantages[g]
                clipped = torch.maximum(-a * rho, -a * rho.clamp(0.999, 1.001))
                losses.append(clipped + 0.7 * ((found - base) ** 2).mean() / bar)
        return torch.stack(losses)

    @torch.no_grad()
    def slope(self, along: list[torch.Tensor], h: float = 1e-5) -> float:
        """Of the mean loss, by finite differences."""
        ends = []
        for step in (h, -2 * h):
            for parameter, part in zip(self.parameters, along):
                parameter.add_(step * part)
            ends.append(self.losses().mean().item())
        return (ends[0] - ends[1]) / (2 * h)


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
    exact = InFloat64(policy, experience, noise, ADVANTAGES)
    losses = exact.losses()
    assert torch.allclose(loss.double(), losses.detach(), rtol=1e-4, atol=1e-5)
    losses.mean().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in exact.parameters])
    assert (found.double() - expected).norm() < 1e-4 * expected.norm()
    assert found.norm() > 0
    figures = objective.figures(experience, seen)
    assert figures.keys() == Forward.names(config)
    assert 0 < figures["clip_fraction"] < 1, figures


def test_the_learners_gradient_is_the_slope_of_the_loss_by_finite_differences(small):
    """From rewards to the accumulated gradient, in micro-batches; nothing is differentiated on the other side."""
    config = config_of(small, timesteps=3, clip_range=1e-3)
    policy = Policy(config.policy, seed=0, reference=True)
    moved(policy)
    experience = Forward(config, policy).rollout(TASK).experience
    moved(policy)
    rewards = torch.tensor([0.1, 0.2, 0.6])
    scores = Scores(rewards.numpy(), None, 0.0)
    # Of another version than the weights: they have moved since.
    Learner(config, policy).accumulate(replace(TASK, version=1), experience, scores)
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in policy.parameters]
    found = sum((p.grad.double() * part).sum().item() for p, part in zip(policy.parameters, along))
    advantages = (rewards.double() - rewards.double().mean()) / rewards.double().std()
    expected = InFloat64(policy, experience, "group", advantages).slope(along)
    assert abs(expected) > 1e-3
    assert found == pytest.approx(expected, rel=1e-3)


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
