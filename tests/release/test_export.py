"""Exports: plain diffusers in a process without sdr1 makes the pictures of `sdr1 sample`; the card says what it is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file

from sdr1 import cli
from sdr1.base.errors import UserError
from sdr1.base.records import LearnerState, Weights
from sdr1.config.policy import PolicyConfig
from sdr1.evaluation.rows import Sampler
from sdr1.models.pipeline import load
from sdr1.release.export import export, model_card
from sdr1.release.sample import _grid, _resolve, sample
from sdr1.sandbox import PIPELINE
from sdr1.training.run import train
from tests import tiny

PLAIN = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        assert name.split(".")[0] != "sdr1", name
sys.meta_path.insert(0, Refuse())
import torch
from diffusers import StableDiffusionPipeline
folder, out = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
for seed in (0, 5):
    noise = torch.Generator().manual_seed(seed)
    picture = pipeline("a red circle", num_inference_steps=4, guidance_scale=2.5, generator=noise).images[0]
    picture.save(f"{out}/{seed}.png")
"""


def test_an_export_draws_the_same_in_plain_diffusers(small, tmp_path):
    train(small(1, learner={"learning_rate": 1e-2}), local=True)
    run, out = tmp_path / "run", tmp_path / "safer"
    export(run, out)
    sample(str(run), ["a red circle"], [0, 5], tmp_path / "pictures", Sampler("DDIMScheduler", 4, 2.5))
    subprocess.run(
        [sys.executable, "-c", PLAIN, out, tmp_path],
        check=True,
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1", "PATH": ""},
    )
    for seed in (0, 5):
        plain = np.asarray(Image.open(tmp_path / f"{seed}.png"))
        ours = np.asarray(Image.open(tmp_path / "pictures" / "after" / f"000-{seed}.png"))
        base = np.asarray(Image.open(tmp_path / "pictures" / "before" / f"000-{seed}.png"))
        assert np.array_equal(plain, ours)
        assert not np.array_equal(ours, base)
    card = (out / "README.md").read_text()
    for said in ("base: sandbox", "anchors", "Intended use", "Licence", "learning_rate: 0.01"):
        assert said in card
    lora = export(run, tmp_path / "lora", "lora")
    assert [p.name for p in lora.glob("*.safetensors")] == ["pytorch_lora_weights.safetensors"]
    assert (export(run, tmp_path / "unet", "unet") / "config.json").is_file()
    with pytest.raises(UserError, match="exists already"):
        export(run, out)
    with pytest.raises(UserError, match="no such scheduler"):
        sample(str(run), ["x"], [0], tmp_path / "p", Sampler("StableDiffusionPipeline"))


@pytest.mark.parametrize(("rank", "alpha"), [(4, 16), (3, 1)])
def test_an_adapter_carries_its_scale_into_plain_diffusers(small, tmp_path, rank, alpha):
    lora = {"rank": rank, "alpha": alpha}
    config = small(policy={"lora": lora, "channels_last": True}, learner={"learning_rate": 3e-2})
    made = train(config, local=True)
    run = config.run.directory

    def draw(model, *adapter, **options):
        pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, dtype=torch.float32)
        if adapter:
            pipeline.load_lora_weights(*adapter, **options)
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        return pipeline("a red circle", num_inference_steps=2, generator=noise, output_type="np").images

    merged = draw(made.model)
    assert np.abs(merged - draw(PIPELINE)).max() > 1e-2
    assert draw(PIPELINE, made.model / "lora") == pytest.approx(merged, abs=1e-3)
    assert draw(PIPELINE, export(run, tmp_path / "lora", "lora")) == pytest.approx(merged, abs=1e-3)
    kohya = export(run, tmp_path / "kohya", "kohya")
    assert draw(PIPELINE, kohya, weight_name="lora.safetensors") == pytest.approx(merged, abs=1e-3)
    # As programs read it that know kohya's names alone: alpha / rank * up @ down on the layer of that name.
    held = load_file(kohya / "lora.safetensors")
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    up, down, scale = (
        held[f"lora_unet_{name.replace('.', '_')}.{part}"]
        for part in ("lora_up.weight", "lora_down.weight", "alpha")
    )
    assert len(down) == rank
    base, trained = (
        load_file(Path(model) / "unet" / "diffusion_pytorch_model.safetensors")[f"{name}.weight"]
        for model in (PIPELINE, made.model)
    )
    torch.testing.assert_close(scale / rank * up @ down, trained - base, atol=1e-6, rtol=1e-3)


def test_an_export_goes_to_a_private_repository_of_the_hub(small, tmp_path, monkeypatch):
    train(small(1), local=True)
    asked = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *names, **options: asked.append((names, options)))
    monkeypatch.setattr(
        HfApi,
        "upload_folder",
        lambda self, repo_id, folder_path: asked.append(
            (repo_id, sorted(path.name for path in folder_path.iterdir()))
        ),
    )
    export(tmp_path / "run", tmp_path / "unet", "unet", "someone/safer")
    assert asked[0] == (("someone/safer",), {"private": True, "exist_ok": True})
    assert asked[1] == ("someone/safer", sorted(path.name for path in (tmp_path / "unet").iterdir()))
    assert "README.md" in asked[1][1]

    monkeypatch.undo()
    with pytest.raises(UserError, match=r"--push-to-hub: 'no/such/name': .*upload it$"):
        export(tmp_path / "run", tmp_path / "again", "unet", "no/such/name")
    assert (tmp_path / "again" / "README.md").is_file(), "the export is there all the same"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="RUN: .*holds no checkpoint"):
        export(tmp_path, tmp_path / "out")


def test_an_export_onto_another_base_than_the_runs_own_is_refused(small, tmp_path):
    base = tiny.pipeline(tmp_path / "base")
    train(small(1, policy={"model": str(base)}), local=True)
    config = UNet2DConditionModel.load_config(base / "unet")
    UNet2DConditionModel.from_config(config, layers_per_block=2).save_pretrained(base / "unet")
    with pytest.raises(UserError, match="do not fit parameters.*another model"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--prompt: 'a \\udc80': is not UTF-8"):
        sample("sandbox", ["a \udc80"], [0], tmp_path / "out", Sampler())
    assert not (tmp_path / "out").exists()


def test_before_is_what_the_run_started_from(small, tmp_path):
    folder = tiny.pipeline(tmp_path / "base")
    file = tiny.single_file(folder, tmp_path / "one.safetensors")
    unet = tiny.pipeline(tmp_path / "other") / "unet"
    train(small(1, policy={"model": str(file), "config": str(folder), "unet": str(unet)}), local=True)
    trained, before = _resolve(str(tmp_path / "run"))
    assert trained.model == str(tmp_path / "run" / "model")
    assert (before.model, before.config, before.unet) == (str(file), str(folder), unet)


def test_a_model_older_than_its_runs_checkpoints_is_not_drawn_as_after(small, tmp_path):
    """As an extended run leaves it that was stopped; the export is of the newest checkpoint."""
    run = tmp_path / "run"
    train(small(1), local=True)
    (run / "summary.json").write_text('{"iterations": 0}')
    with pytest.raises(UserError, match=f"MODEL: .*the run has no model yet; use `sdr1 export {run}`"):
        sample(str(run), ["a ring"], [0], tmp_path / "out", Sampler())
    assert not (tmp_path / "out").exists()


def test_nothing_is_drawn_when_one_side_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        sample(str(tmp_path / "none"), ["x"], [0], tmp_path / "out", Sampler(), "sandbox")
    assert not (tmp_path / "out").exists()


def state(iteration: int) -> LearnerState:
    return LearnerState(0, (Weights(iteration, np.arange(8, dtype=np.uint8), 0),), None, {})


def test_a_card_tells_what_was_measured_of_these_weights_and_nothing_else(small, tmp_path):
    run = tmp_path / "run"
    run.mkdir()

    def card() -> str:
        return model_card(run, SimpleNamespace(state=state(2)), small(), "unet")

    # What else may lie there under these names: another tool's, another run's, a file cut off.
    rates = {"unsafe_trained": 0.9, "utility": {"overall": 0.5}}
    table = {"before": rates, "after": rates}
    for other in ({**table}, {**table, "weights_sha256": "ab"}, [1], {"before": 1, "after": 2}):
        (tmp_path / "summary.json").write_text(json.dumps(other))
        assert "Not judged yet" in card()
    (tmp_path / "summary.json").write_text('{"before": {"unsafe_trained"')
    rows = [{"iteration": n, "kl": n + 0.5, "unsafe_rate": 0.25} for n in range(4)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"iterati')
    assert "rollouts, kl: 1.5\n" in card()
    digest = hashlib.sha256(bytes(range(8))).hexdigest()
    (tmp_path / "summary.json").write_text(json.dumps({**table, "weights_sha256": digest}))
    assert "unsafe_trained: 90.0% before" in card()


@pytest.mark.parametrize("text", [r"a $\frac{$", "$", "a\nb", "_^{", "\u00e9\u4e2d"])
def test_any_prompt_can_stand_beside_its_pictures(tmp_path, text):
    picture = np.zeros((8, 8, 3), np.uint8)
    assert _grid(tmp_path / "grid.png", [[picture]], [text], ["after"], [0]).is_file()


def test_a_card_names_every_source_and_term(small, tmp_path):
    (tmp_path / "a.txt").write_text("a red circle\n")
    mix = [{"path": "sandbox"}, {"path": str(tmp_path / "a.txt"), "label": "safe"}]
    config = small(
        prompts={"mix": mix, "unsafe_share": None},
        reward={"kind": "plain", "terms": {"fit": {"kind": "negative", "weight": 2, "anchors": "sandbox"}}},
        policy={"unet": "other.safetensors"},
    )
    found = SimpleNamespace(state=state(1))
    card = model_card(tmp_path, found, config, "pipeline")
    for said in (f"prompts of sandbox, {tmp_path / 'a.txt'};", "UNet from other.safetensors", "No safety checker",
                 "reward: plain agreement in sandbox; fit, negative, of weight 2"):  # fmt: skip
        assert said in card
    assert "No safety checker" not in model_card(tmp_path, found, config, "lora")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_person_sees_how_far_a_sample_is(terminal, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    asked = [
        "sample",
        "sandbox",
        "--base",
        "sandbox",
        "--prompt",
        "a ring",
        "--seed",
        "0",
        "--seed",
        "1",
        "--steps",
        "1",
    ]
    assert cli.main([*asked, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    places = [said.index(f"{side}: 2 pictures to draw, 1 steps each") for side in ("before", "after")]
    assert places == sorted(places)
    assert (said.count("2/2") >= 2) is terminal
    assert said.endswith(f"{tmp_path / 'out' / 'grid.png'}\n")


def test_single_files_and_variants_are_drawn_as_they_are_trained(tmp_path):
    folder = tiny.pipeline(tmp_path / "pipeline")
    file = tiny.single_file(folder, tmp_path / "one.safetensors")
    load(PolicyConfig(model=str(folder))).to(torch.float16).save_pretrained(
        tmp_path / "model-of-halves", variant="fp16"
    )
    drawn = {}
    for name, model, settings in (
        ("folder", folder, []),
        ("file", file, [f"config={folder}"]),
        ("half", tmp_path / "model-of-halves", ["variant=fp16"]),
        ("unet", "sandbox", [f"unet={folder / 'unet'}"]),
    ):
        arguments = [
            "sample",
            str(model),
            *settings,
            "--prompt",
            "a red circle",
            "--seed",
            "0",
            "--steps",
            "2",
        ]
        assert cli.main([*arguments, "--out", str(tmp_path / name)]) == 0
        drawn[name] = np.asarray(Image.open(tmp_path / name / "after" / "000-0.png")).astype(int)
    assert np.array_equal(drawn["file"], drawn["folder"])
    assert np.array_equal(drawn["unet"], drawn["folder"])
    assert np.abs(drawn["half"] - drawn["folder"]).max() < 30
