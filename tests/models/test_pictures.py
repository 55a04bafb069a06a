"""Bytes are made of finite pixels only: what a broken model draws would be safe to every judge."""

from __future__ import annotations

import colorsys
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sdr1 import cli
from sdr1.base.errors import TrainingError, UserError
from sdr1.base.records import GroupTask, Prompt
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.rows import Row, Sampler
from sdr1.models import pictures
from sdr1.models.pipeline import load_pipeline
from sdr1.models.policy import Policy
from sdr1.sandbox import PIPELINE
from tests import tiny

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def broken(folder: Path, part: str, value: float) -> Path:
    """The sandbox's pipeline with one number of a part replaced."""
    shutil.copytree(PIPELINE, folder)
    file = folder / part / f"{PARTS[part]}.safetensors"
    tensors = load_file(file)
    tensors[max(tensors)].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_pixels_are_rounded_and_others_refused():
    class Vae:
        config = SimpleNamespace(scaling_factor=2.0)

        def decode(self, latents: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=latents)

    latents = torch.tensor([-3.0, -2, 0, 1, 2, 9]).view(2, 3, 1, 1)
    assert pictures.decode(Vae(), latents).tolist() == [[[[0, 0, 128]]], [[[191, 255, 255]]]]
    for value in (torch.nan, torch.inf, -torch.inf):
        latents[1, 2] = value
        with pytest.raises(FloatingPointError, match="1 of 2 pictures"):
            pictures.decode(Vae(), latents)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_do_not_load(part, value, tmp_path):
    folder = broken(tmp_path / "broken", part, value)
    with pytest.raises(UserError, match=f"policy.model: .*broken': {part}: .* not finite"):
        load_pipeline(str(folder))


def test_a_broken_model_is_neither_judged_nor_sampled(tmp_path, capsys):
    folder, out = broken(tmp_path / "broken", "unet", float("nan")), tmp_path / "out"
    evaluate = ["evaluate", "sandbox", "--local", "--model", str(folder), "images=1"]
    sample = ["sample", str(folder), "--base", "sandbox", "--prompt", "a ring", "--steps", "2"]
    for command in (evaluate, sample):
        assert cli.main([*command, "--out", str(out)]) == 2
        error = capsys.readouterr().err.strip()
        assert "not finite" in error
        assert len(error.splitlines()) == 1
        assert not out.exists()


def test_finite_weights_that_draw_no_picture(tmp_path):
    row = Row("7", "a ring", 0, Sampler(steps=3, guidance_scale=1e38), 32, 32)
    with pytest.raises(UserError, match=r"guidance 1e\+38, from row 7: 1 of 1 pictures .* not finite"):
        Painter(load_pipeline("sandbox")).draw([row])


def test_a_rollout_of_a_broken_policy_stops_training(small):
    policy = Policy(small().policy)
    # Of bytes: every float of them is NaN.
    policy.flat.load(np.full_like(policy.flat.publish(0).buffer, 255))
    task = GroupTask(seed=3, iteration=1, group=2, prompt=Prompt("two rings", "safe"), version=0)
    with pytest.raises(TrainingError, match=r"iteration 1, group 2 \('two rings'\): 2 of 2 pictures"):
        policy.decode(policy.chain(task, 2, with_reference=False)[0], task)


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, float("inf"), "large"])
def test_a_vae_needs_a_scale(value, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(PIPELINE, folder)
    tiny.edit(folder / "vae" / "config.json", scaling_factor=value)
    with pytest.raises(UserError, match=r"policy\.model: .*vae/config.json: scaling_factor .*0\.18215"):
        load_pipeline(str(folder))


def test_colours_are_those_of_the_standard_library():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
    images[0, 0, 0] = 0
    pixels = images.reshape(-1, 3) / 255
    found = pictures.colours(images)
    assert found["brightness"] == pytest.approx(pixels.mean(), abs=1e-6)
    expected = np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in pixels])
    assert found["saturation"] == pytest.approx(expected, abs=1e-6)
