"""What has to hold for every method; each method's own tests call these with small settings."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from sdr1.erasers import patched
from sdr1.erasers.meter import Meter, OutOfBudget
from sdr1.erasers.protocol import Erased, Eraser, Task
from sdr1.models.pipeline import sha256

PROMPTS = ("a red square beside a ring", "a blue ring")


def holds(eraser: Eraser, pipeline: Any, task: Task, folder: Path) -> Erased:
    """Same seed, same result; the base stays; the budget is never passed; what is saved is what is loaded; plain diffusers
    refuses a patch; two images in a row equal each alone."""
    before, random = sha256(pipeline), torch.get_rng_state()
    whole = Meter()
    erased = eraser(pipeline, task, whole)
    again = eraser(pipeline, task, Meter())
    assert sha256(pipeline) == before, "the base was changed"
    assert torch.equal(torch.get_rng_state(), random), "torch's own randomness moved on"
    assert not pipeline.unet._forward_pre_hooks
    assert not erased.pipeline.unet._forward_pre_hooks
    assert sha256(again.pipeline) == sha256(erased.pipeline)
    assert (sha256(erased.pipeline) == before) == (erased.patch is not None)
    if erased.patch is not None:
        assert erased.patch.settings == again.patch.settings
        assert erased.patch.tensors.keys() == again.patch.tensors.keys()
        assert all(
            torch.equal(erased.patch.tensors[name], held) for name, held in again.patch.tensors.items()
        )
    _keeps_to_a_budget(eraser, pipeline, task, whole.spent)
    _comes_back(erased, eraser.name, folder)
    return erased


def changes_nothing(eraser: Eraser, pipeline: Any, task: Task) -> None:
    """A patch of no strength draws the base's pictures, bit for bit."""
    erased = eraser(pipeline, task, Meter())
    plain = [draw(erased.pipeline, prompt) for prompt in PROMPTS]
    patched.install(erased.patch, erased.pipeline)
    assert all(torch.equal(draw(erased.pipeline, prompt), picture) for prompt, picture in zip(PROMPTS, plain))


def states(pipeline: Any, prompt: str) -> torch.Tensor:
    """Of one prompt, shape (1, 77, D), as the pipeline itself encodes it."""
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, "cpu", 1, False)[0]


def descends(before: Any, after: Any, loss: Any) -> None:
    """The first update of Adam: what moved went against the gradient of `loss`, of the module in float64, by its sign."""
    wide = copy.deepcopy(before).double().requires_grad_(True)
    loss(wide).backward()
    exact = {name: held.grad for name, held in wide.named_parameters() if held.grad is not None}
    largest = max(float(slope.abs().max()) for slope in exact.values())
    moved = 0
    for name, was in before.named_parameters():
        step = after.get_parameter(name) - was
        if step.any():
            # A key's bias, say, has no gradient but rounding's.
            size = exact[name].abs()
            clear = (size > 1e-2 * size.max()) & (size > 1e-6 * largest)
            assert torch.equal(torch.sign(step[clear]), -torch.sign(exact[name][clear]).float()), name
            moved += int(clear.sum())
    assert moved


def draw(pipeline: Any, prompt: str | list[str], steps: int = 2) -> torch.Tensor:
    """Latents of one call of the pipeline, with guidance."""
    count = 1 if isinstance(prompt, str) else len(prompt)
    noise = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return pipeline(
        prompt, num_inference_steps=steps, guidance_scale=2.0, generator=noise, output_type="latent"
    ).images


def _keeps_to_a_budget(eraser: Eraser, pipeline: Any, task: Task, spent: int) -> None:
    budget = max(spent - 1, 0)
    meter = Meter(budget)
    with suppress(OutOfBudget):
        eraser(pipeline, task, meter)
    assert meter.spent <= budget
    if spent:
        # A budget that pays for nothing leaves no folder: it would hold the base.
        with pytest.raises(OutOfBudget):
            eraser(pipeline, task, Meter(1))


def _comes_back(erased: Erased, name: str, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    patched.write(erased, name, folder)
    if erased.patch is not None:
        with pytest.raises(OSError, match="model_index.json"):
            StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        patched.install(erased.patch, erased.pipeline)
    loaded = patched.load_named(str(folder))
    assert patched.sha256(loaded) == patched.sha256(erased.pipeline)
    alone = draw(loaded, PROMPTS[1])
    # Where tensors begin in memory decides the last bits of a product.
    torch.testing.assert_close(
        draw(loaded, PROMPTS[0]), draw(erased.pipeline, PROMPTS[0]), rtol=1e-3, atol=1e-4
    )
    assert torch.equal(draw(loaded, PROMPTS[1]), alone), "an image sees the one before"
