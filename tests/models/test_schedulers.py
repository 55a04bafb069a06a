"""Schedulers for latents: what the file of another kind of scheduler leaves out changes no picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.base.records import GroupTask, Prompt
from sdr1.config.policy import PolicyConfig
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.protocols.schedulers import SCHEDULERS
from sdr1.evaluation.rows import Row, Sampler
from sdr1.models import schedulers
from sdr1.models.pipeline import load_pipeline
from sdr1.models.policy import Policy
from sdr1.sandbox import PIPELINE
from tests import tiny

CONVERTED = [
    {"_class_name": "EulerDiscreteScheduler", "clip_sample": None},
    {"_class_name": "DPMSolverMultistepScheduler", "clip_sample": None, "thresholding": True},
    {"thresholding": True, "clip_sample": True},
]
"""What tools write into scheduler_config.json."""


@pytest.fixture(params=CONVERTED, ids=lambda changes: changes.get("_class_name", "DDIMScheduler"))
def converted(request, tmp_path) -> Path:
    folder = tmp_path / "converted"
    shutil.copytree(PIPELINE, folder)
    tiny.edit(folder / "scheduler" / "scheduler_config.json", **request.param)
    return folder


def test_no_picture_is_clipped_or_thresholded(converted):
    ours, theirs = Painter(load_pipeline(str(converted))), Painter(load_pipeline("sandbox"))
    for name in ("DDIMScheduler", "DDPMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"):
        row = Row("0", "a red circle", 1, Sampler(name, 4, 6.0), 32, 32)
        assert np.array_equal(ours.draw([row]), theirs.draw([row])), name


def test_what_is_saved_again_neither_clips_nor_thresholds(converted, tmp_path):
    held = load_pipeline(str(converted)).scheduler
    for name in set(SCHEDULERS) - {"KDPM2AncestralDiscreteScheduler"}:
        config = schedulers.make(name, held.config).config
        assert {config.get("clip_sample"), config.get("thresholding")} <= {None, False}, name
    held.save_pretrained(tmp_path / "saved")
    saved = schedulers.scheduler_class(type(held).__name__).from_pretrained(tmp_path / "saved").config
    assert {saved.get("clip_sample"), saved.get("thresholding")} <= {None, False}


def test_training_draws_what_an_evaluation_draws(converted):
    task = GroupTask(seed=3, iteration=1, group=2, prompt=Prompt("a skull", "unsafe"), version=0)
    options = {"steps": 3, "guidance_scale": 2.0}
    one, two = (
        Policy(PolicyConfig(model=model, **options)).chain(task, 2, with_reference=False)[0]
        for model in (str(converted), "sandbox")
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("name", "steps", "said"),
    [
        ("Nope", 4, "sampler.scheduler: 'Nope': diffusers has no such scheduler"),
        ("FlowMatchEulerDiscreteScheduler", 4, "sampler.scheduler: .*no such scheduler for Stable Diffusion"),
        ("EDMEulerScheduler", 4, "sampler.scheduler: .*no such scheduler for Stable Diffusion"),
        ("StableDiffusionPipeline", 4, "sampler.scheduler: .*no such scheduler for Stable Diffusion"),
        ("DDIMScheduler", 1001, "sampler.steps: 1001: the model was trained on 1000 timesteps"),
        ("EulerDiscreteScheduler", 1001, "sampler.steps: 1001: the model was trained on 1000 timesteps"),
        ("PNDMScheduler", 10**12, "sampler.steps: 1000000000000: the model was trained on 1000"),
    ],
)
def test_what_cannot_draw_is_refused(name, steps, said):
    with pytest.raises(UserError, match=said):
        schedulers.check(name, steps, load_pipeline("sandbox").scheduler.config)
