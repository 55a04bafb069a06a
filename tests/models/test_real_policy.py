"""Policies from the files people have: other predictions, sizes, precisions, UNets, and LoRA's bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdr1.base.errors import TrainingError
from sdr1.base.records import GroupTask, Prompt, Scores
from sdr1.config.policy import LoraConfig, PolicyConfig
from sdr1.models import lora
from sdr1.models.pipeline import load
from sdr1.models.policy import Policy
from sdr1.planning.shapes import SD_1
from sdr1.training.learner import Learner
from tests import tiny

TASK = GroupTask(3, 0, 0, Prompt("two blue squares", "safe"), version=0)
SCORES = Scores(np.array([0.1, 0.2, 0.6], np.float32), None, 0.0)


def test_v_prediction_makes_the_pictures_that_diffusers_makes(small, tmp_path):
    folder = tiny.pipeline(tmp_path / "v", prediction_type="v_prediction")
    config = small(policy={"model": str(folder), "eta": 1e-4, "noise_window": [0, 1], "steps": 4}).policy
    policy = Policy(config)
    latents, trajectory = policy.chain(TASK, 2, with_reference=False)
    drawn = load(config)(
        [TASK.prompt.text] * 2,
        num_inference_steps=4,
        guidance_scale=2.0,
        latents=torch.from_numpy(trajectory.states[0].copy()),
        output_type="np",
    ).images
    assert np.abs(policy.decode(latents, TASK) / 255 - drawn).max() < 0.02


def test_size_in_pixels(small):
    sides = []
    for size in (None, 64):
        policy = Policy(small(policy={"size": size}).policy)
        latents, trajectory = policy.chain(TASK, 2, with_reference=False)
        sides.append((trajectory.states.shape[-1], policy.decode(latents, TASK).shape))
    assert sides == [(8, (2, 32, 32, 3)), (16, (2, 64, 64, 3))]


# Few evaluations: a CPU without such units computes halves slowly.
FAST = {"steps": 2, "noise_window": [0, 1]}


@pytest.mark.parametrize(("precision", "trainable"), [("bfloat16", "lora"), ("float16", "full")])
def test_autocast_keeps_the_chain_in_float32_and_the_ratio_at_one(small, precision, trainable):
    options = {**FAST, "precision": precision, "trainable": trainable}
    config = small(
        policy=options,
        prompts={"per_iteration": 1, "unsafe_share": None},
        learner={"micro_batch": 3, "kl_weight": 0.0},
    )
    policy = Policy(config.policy)
    learner = Learner(config, policy)
    _, trajectory = policy.chain(TASK, 3, with_reference=False)
    _, exact = Policy(small(policy={**FAST, "trainable": trainable}).policy).chain(
        TASK, 3, with_reference=False
    )
    assert {trajectory.states.dtype, trajectory.log_probs.dtype} == {np.dtype("float32")}
    assert not np.array_equal(trajectory.states, exact.states)
    assert np.allclose(trajectory.states[1], exact.states[1], atol=0.1)
    report = learner.accumulate(TASK, trajectory, SCORES)
    # Same shapes on both sides: the same bits.
    assert report.figures == {"clip_fraction": 0, "ratio_gap/step_0": 0}
    update = learner.step()
    assert 0 < update.grad_norm < 1e4


def gradient(small, **policy):
    config = small(
        policy={**FAST, "trainable": "full", **policy},
        prompts={"per_iteration": 1, "unsafe_share": None},
        learner={"micro_batch": 3, "kl_weight": 0.0},
    )
    made = Policy(config.policy)
    learner = Learner(config, made)
    learner.accumulate(TASK, made.chain(TASK, 3, with_reference=False)[1], SCORES)
    return learner.step().grad_norm


def test_half_precision_gradients_are_scaled_and_unscaled(small):
    exact = gradient(small)
    assert gradient(small, precision="float16") == pytest.approx(exact, rel=0.1)
    assert gradient(small, precision="bfloat16") == pytest.approx(exact, rel=0.2)


def test_options_of_memory_and_layout_change_no_gradient(small):
    exact = gradient(small)
    for option in ("gradient_checkpointing", "channels_last", "attention_slicing", "vae_slicing"):
        assert gradient(small, **{option: True}) == pytest.approx(exact, rel=1e-4), option


def test_channels_last_survives_publishing(small):
    one, two = (Policy(small(policy={"trainable": "full", "channels_last": True}).policy) for _ in range(2))
    with torch.no_grad():
        for parameter in one.parameters:
            parameter.add_(0.01)
    assert two.flat.load(one.flat.publish(1).buffer) == one.flat.publish(1).checksum
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, two.parameters, strict=True))
    four = [parameter for parameter in two.parameters if parameter.ndim == 4]
    assert all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in four)


def test_compile_is_asked_for_and_keeps_the_parameters_names(small, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(type(self).__name__))
    Policy(small(policy={"compile": True, "trainable": "full"}).policy, reference=True)
    assert asked == ["UNet2DConditionModel"] * 2


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_unet_over_the_base(small, tmp_path, kind):
    other = tiny.pipeline(tmp_path / "other") / "unet"
    path = other if kind == "folder" else other / "diffusion_pytorch_model.safetensors"
    put = load(PolicyConfig(unet=path)).unet.state_dict()
    expected = load(PolicyConfig(model=str(tmp_path / "other"))).unet.state_dict()
    base = load(PolicyConfig()).unet.state_dict()
    assert all(torch.equal(put[name], expected[name]) for name in put)
    assert not all(torch.equal(put[name], base[name]) for name in put)


def test_a_single_file_checkpoint_is_the_pipeline_that_it_was_made_of(small, tmp_path):
    folder = tiny.pipeline(tmp_path / "pipeline")
    file = tiny.single_file(folder, tmp_path / "one.safetensors")
    options = {"model": str(file), "config": str(folder), "trainable": "full"}
    policy, expected = (
        Policy(small(policy={**FAST, **each}).policy)
        for each in (options, {"model": str(folder), "trainable": "full"})
    )
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(each.pipeline, part).state_dict() for each in (policy, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    made, same = (each.chain(TASK, 2, with_reference=False)[0] for each in (policy, expected))
    assert np.array_equal(policy.decode(made, TASK), expected.decode(same, TASK))


def test_a_variant_is_loaded_in_float32(tmp_path):
    folder = tiny.pipeline(tmp_path / "half")
    load(PolicyConfig(model=str(folder))).to(torch.float16).save_pretrained(tmp_path / "v", variant="fp16")
    unet = load(PolicyConfig(model=str(tmp_path / "v"), variant="fp16")).unet
    assert unet.dtype == torch.float32


def test_the_safety_checker_is_off():
    pipeline = load(PolicyConfig())
    assert pipeline.safety_checker is None
    assert not pipeline.config.requires_safety_checker


def test_another_weight_in_half_precision_is_still_caught(small):
    config = small(policy={**FAST, "precision": "bfloat16"})
    policy = Policy(config.policy, reference=True)
    learner = Learner(config, policy)
    trajectory = policy.chain(TASK, 3, with_reference=True)[1]
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(0.1)
    with pytest.raises(TrainingError, match="likelihood ratio"):
        learner.accumulate(TASK, trajectory, SCORES)


def test_lora_publishes_less_than_a_hundredth_of_a_full_size_unet():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD_1["unet"]).requires_grad_(False)
        full = sum(parameter.nbytes for parameter in unet.parameters())
        lora.add(unet, LoraConfig(), seed=0)
    adapters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert full == pytest.approx(4 * 860e6, rel=0.01)
    assert 0 < sum(parameter.nbytes for parameter in adapters) <= 0.01 * full
