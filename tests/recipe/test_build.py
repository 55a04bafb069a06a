"""`sdr1 sandbox build`: a stopped stage goes on with the same bits, and all stages leave folders that load."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.models.pipeline import load_pipeline
from sdr1.recipe import build, clip, common, data, oracle, reward, unet, vae
from sdr1.sandbox.oracle import Oracle


def trained(folder, stop_after: int | None = None) -> torch.Tensor:
    """Weights after six steps of a small regression, whose batches follow from the step."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1)

    def loss_at(step):
        if step == stop_after:
            raise KeyboardInterrupt
        inputs = torch.randn(8, 3, generator=data.generator(9, step))
        return {"loss": (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()}

    groups = [{"params": list(net.parameters()), "lr": 0.1}]
    schedule = common.warmup_then_linear(0.2, 0.5)
    common.train("net", net, groups, loss_at, 6, schedule, folder, checkpoint_every=2)
    return net.weight.detach().clone()


def test_a_stopped_stage_goes_on_with_the_same_bits(tmp_path):
    undisturbed = trained(tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", stop_after=5)
    assert torch.equal(trained(tmp_path / "stopped"), undisturbed)


def test_a_loss_that_is_not_finite_stops_a_stage(tmp_path):
    net = torch.nn.Linear(1, 1)
    groups = [{"params": list(net.parameters()), "lr": 0.1}]
    before = net.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="at step 0"):
        common.train(
            "net",
            net,
            groups,
            lambda step: {"loss": net.weight.sum() * float("nan")},
            2,
            lambda progress: 1.0,
            tmp_path,
        )
    assert torch.equal(net.weight, before)


def test_an_unknown_stage_is_named(tmp_path):
    with pytest.raises(UserError, match="--stage: 'vea': no such stage; use vae, clip"):
        build.build(tmp_path, ["vea"])


@pytest.mark.slow
def test_all_stages_from_nothing_leave_folders_that_load(tmp_path, monkeypatch):
    for module in (vae, clip, oracle, reward):
        monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(clip, "NEAR_STEPS", 2)
    monkeypatch.setattr(unet, "PHASES", [each._replace(steps=2) for each in unet.PHASES])
    for module in (clip, oracle):
        monkeypatch.setattr(module, "DECODED", 64)
    monkeypatch.setattr(oracle, "SPOILT", 32)
    monkeypatch.setattr(reward, "PAIRS", 32)
    monkeypatch.setattr(data, "TRAIN", 400)
    monkeypatch.setattr(data, "TEST", 100)
    monkeypatch.setattr(torch, "compile", lambda module: module)
    data.training_set.cache_clear()
    data.test_set.cache_clear()
    try:
        for stage in build.STAGES[:-1]:
            build._run([stage], [stage], tmp_path)
            assert json.loads((tmp_path / ".build" / f"{stage}.json").read_text())["minutes"] > 0
        # Complete stages are read from their checkpoints, not trained again: the second pass leaves the same bits.
        first = (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        build._run(["unet"], ["unet"], tmp_path)
        assert (tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == first
    finally:
        data.training_set.cache_clear()
        data.test_set.cache_clear()
    assert load_pipeline(str(tmp_path / "pipeline")).unet.config.sample_size == 8
    open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    Oracle.load(tmp_path / "oracle.safetensors")
