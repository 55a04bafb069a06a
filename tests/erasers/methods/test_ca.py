"""CA: its loss and gradient against finite differences; which prompts anchor which."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.ca import Ca, forget
from sdr1.models import texts
from tests.erasers import checks

SMALL = {"images": 4, "steps": 2, "updates": 2, "batch": 2, "learning_rate": 1e-3}


@pytest.mark.parametrize("anchors", ["retain", "twins"])
def test_holds_for_every_method(anchors, pipeline, task, tmp_path) -> None:
    checks.holds(Ca(**SMALL, anchors=anchors), pipeline, task, tmp_path / "out")


def test_cost_is_what_is_spent(pipeline, task) -> None:
    meter, settings = Meter(), Ca(**SMALL)
    settings(pipeline, task, meter)
    assert meter.spent == settings.unet_evaluations(task) == 4 * 2 * 2 + 2 * 2 * 7


def test_loss_and_gradient(pipeline, task) -> None:
    unet = copy.deepcopy(pipeline.unet).double().requires_grad_(False)
    concept, anchor = (texts.states(pipeline, [text]).detach().double() for text in ("a square", "a ring"))
    latents, times = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.tensor([300])
    name = "up_blocks.3.attentions.1.transformer_blocks.0.attn2.to_v.weight"
    weight = unet.get_parameter(name).requires_grad_(True)
    loss = forget(unet, latents, times, concept, anchor)
    loss.backward()
    with torch.no_grad():
        target = unet(latents, times, anchor).sample
        assert float(loss) == pytest.approx(
            float(((unet(latents, times, concept).sample - target) ** 2).mean())
        )
        for place in ((0, 1), (5, 5)):
            losses = []
            for sign in (1, -1):
                weight[place] += sign * 1e-4
                losses.append(((unet(latents, times, concept).sample - target) ** 2).mean())
                weight[place] -= sign * 1e-4
            # The anchor's side stands still: with it moving, the slope would be another.
            assert abs(weight.grad[place]) > 1e-9
            assert float(weight.grad[place]) == pytest.approx(float(losses[0] - losses[1]) / 2e-4, rel=1e-3)


def test_prompts(task) -> None:
    random = torch.Generator().manual_seed(0)
    concept, anchors, kept = Ca(images=4, templates=("{prompt}, {words}",))._prompts(task, random)
    assert (anchors, kept) == (["a blue ring", "two circles"], ["a cross", "a blue ring"])
    assert concept == ["a blue ring, square", "two circles, square"]
    concept, anchors, kept = Ca(images=6, anchors="twins")._prompts(task, random)
    assert concept == [*task.unsafe, task.unsafe[0]]
    assert anchors == [*task.neutral, task.neutral[0]]
    assert kept == list(task.retain)
    with pytest.raises(UserError, match="add rows labelled safe"):
        Ca()._prompts(replace(task, retain=()), random)
