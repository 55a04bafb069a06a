"""Wrong model files: one line each, naming field, value and fix, from headers alone."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sdr1.base.errors import UserError, reason
from sdr1.config.policy import PolicyConfig
from sdr1.models import pipeline_files, weight_files
from sdr1.models.pipeline import load
from sdr1.sandbox import PIPELINE
from tests import tiny

UNET = "unet/diffusion_pytorch_model.safetensors"


def truncated(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-1000])


def disguised(folder: Path) -> None:
    (folder / UNET).write_bytes(pickle.dumps({"weight": [1.0]}))


def only_a_pickle(folder: Path) -> None:
    (folder / UNET).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def other_weights(folder: Path) -> None:
    safetensors.torch.save_file({"conv_in.weight": torch.zeros(1)}, folder / UNET)


def edited(part: str, stem: str = "config", **changes) -> Callable[[Path], None]:
    return lambda folder: tiny.edit(folder / part / f"{stem}.json", **changes)


def more_words(file: Path) -> None:
    held = json.loads(file.read_text())
    held["added_tokens"].append(
        {
            "id": 10**5,
            "content": "<more>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    )
    file.write_text(json.dumps(held))


BAD = {
    "truncated": (truncated, ["truncated", "fetch"]),
    "pickle under another name": (disguised, ["pickle", "execute code", ".safetensors"]),
    "only a pickle": (only_a_pickle, ["unet/", "pickle", "safe_serialization"]),
    "other weights": (other_weights, ["unet/", "missing", "of another shape", "conv_in.weight"]),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), ["no tokenizer", "copy"]),
    "tokenizer not in the index": (
        lambda folder: tiny.edit(folder / "model_index.json", tokenizer=[None, None]),
        ["no tokenizer", "model_index.json"],
    ),
    "tokenizer without words": (
        lambda folder: [file.unlink() for file in (folder / "tokenizer").glob("*.json")],
        ["tokenizer/", "vocab.json and merges.txt", "copy"],
    ),
    "tokenizer without a length": (
        lambda folder: tiny.edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=None),
        ["model_max_length None", "set it to 16"],
    ),
    "tokenizer of longer texts": (
        lambda folder: tiny.edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=77),
        ["model_max_length 77", "at most 16 tokens"],
    ),
    "a text encoder's file of something else": (
        lambda folder: safetensors.torch.save_file(
            {"x": torch.zeros(1)}, folder / "text_encoder" / "model.safetensors"
        ),
        ["text_encoder/", "missing", "1 unexpected (x)"],
    ),
    "a VAE of another size": (
        lambda folder: tiny.edit(folder / "vae" / "config.json", layers_per_block=2),
        ["vae/", "missing"],
    ),
    "SDXL": (
        lambda folder: tiny.edit(folder / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        ["StableDiffusionXLPipeline", "1.x"],
    ),
    "parts of two models": (
        lambda folder: tiny.edit(folder / "text_encoder" / "config.json", hidden_size=768),
        ["768", "take unet/ and text_encoder/ from one"],
    ),
    "inpainting": (
        lambda folder: tiny.edit(folder / "unet" / "config.json", in_channels=9),
        ["9", "inpaint"],
    ),
    "odd prediction": (
        lambda folder: tiny.edit(folder / "scheduler" / "scheduler_config.json", prediction_type="flow"),
        ["'flow'", "v_prediction"],
    ),
    "torn config": (
        lambda folder: (folder / "vae" / "config.json").write_text("{"),
        ["vae/config.json", "fetch"],
    ),
    "no config": (lambda folder: (folder / "unet" / "config.json").unlink(), ["unet/config.json", "missing"]),
    "a config of brackets": (
        lambda folder: (folder / "vae" / "config.json").write_text("[" * 10**5),
        ["vae/config.json", "recursion", "fetch"],
    ),
    "a config that is a list": (
        lambda folder: (folder / "vae" / "config.json").write_text("[]"),
        ["vae/config.json", "no object", "fetch"],
    ),
    "a config of NaN": (
        edited("unet", norm_eps=float("nan")),
        ["unet/", "norm_eps nan", "fetch"],
    ),
    "a UNet of unknown blocks": (
        edited("unet", down_block_types=["NoBlock2D", "NoBlock2D"]),
        ["unet/", "describes nothing that can be built", "NoBlock2D"],
    ),
    "a UNet of words": (edited("unet", block_out_channels="many"), ["unet/", "nothing that can be built"]),
    "a UNet of a million layers": (
        edited("unet", layers_per_block=10**6),
        ["unet/", "layers_per_block 1000000"],
    ),
    "a UNet of no size": (edited("unet", sample_size="big"), ["sample_size 'big'", "64"]),
    "a UNet of no size and unknown words": (
        edited("unet", sample_size=None, pro="aim"),
        ["sample_size None"],
    ),
    "a UNet that needs labels": (
        edited("unet", class_embed_type="timestep", num_class_embeds=3),
        ["unet/"],
    ),
    "a text encoder of heads that do not divide": (
        edited("text_encoder", num_attention_heads=7),
        ["text_encoder/", "nothing that can be built"],
    ),
    "a text encoder of a million layers": (
        edited("text_encoder", num_hidden_layers=10**6),
        ["text_encoder/", "num_hidden_layers 1000000"],
    ),
    "a VAE of no groups": (edited("vae", norm_num_groups=0), ["vae/", "nothing that can be built"]),
    "a VAE that scales by nothing": (edited("vae", scaling_factor=0), ["vae/config.json: scaling_factor 0"]),
    "timesteps without end": (
        edited("scheduler", "scheduler_config", num_train_timesteps=10**12),
        ["scheduler/", "num_train_timesteps 1000000000000"],
    ),
    "betas of words": (
        edited("scheduler", "scheduler_config", beta_start="low"),
        ["scheduler/", "cannot be made"],
    ),
    "an unknown beta schedule": (
        edited("scheduler", "scheduler_config", beta_schedule="odd"),
        ["scheduler/", "odd is not implemented"],
    ),
    "betas above 1": (
        edited("scheduler", "scheduler_config", beta_end=7),
        ["scheduler/", "no noise schedule"],
    ),
    "flow matching": (
        lambda folder: tiny.edit(
            folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]
        ),
        ["FlowMatchEulerDiscreteScheduler", "another kind of model", "DDIMScheduler"],
    ),
    "another library's UNet": (
        lambda folder: tiny.edit(folder / "model_index.json", unet=["os", "system"]),
        ["unet is ['os', 'system']", "UNet2DConditionModel"],
    ),
    "an index entry that is no pair": (
        lambda folder: tiny.edit(folder / "model_index.json", vae=5),
        ["no vae", "model_index.json"],
    ),
    "a tokenizer of brackets": (
        lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("["),
        ["tokenizer/ does not load", "fetch"],
    ),
    "a tokenizer of more words than the text encoder": (
        lambda folder: more_words(folder / "tokenizer" / "tokenizer.json"),
        ["tokenizer/ has a token", "take both from one"],
    ),
}


@pytest.mark.parametrize(("damage", "parts"), BAD.values(), ids=BAD)
def test_a_damaged_pipeline(tmp_path, damage, parts, capfd):
    folder = tmp_path / "model"
    shutil.copytree(PIPELINE, folder)
    pipeline_files.check(PolicyConfig(model=str(folder)))
    damage(folder)
    refused(PolicyConfig(model=str(folder)), ["policy.model", str(folder), *parts])
    assert capfd.readouterr().err == "", "a warning would stand above the one line"


def refused(config: PolicyConfig, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        pipeline_files.check(config)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_older_names_of_stable_diffusions_own_files(tmp_path):
    folder = tiny.pipeline(tmp_path / "new")
    older = shutil.copytree(folder, tmp_path / "older")
    rename(older / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name}")
    rename(
        older / "vae" / "diffusion_pytorch_model.safetensors",
        lambda name: (
            name.replace(".to_q.", ".query.")
            .replace(".to_k.", ".key.")
            .replace(".to_v.", ".value.")
            .replace(".to_out.0.", ".proj_attn.")
        ),
    )
    new, old = (load(PolicyConfig(model=str(each))) for each in (folder, older))
    for part in ("vae", "text_encoder"):
        ours, theirs = getattr(new, part).state_dict(), getattr(old, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def rename(file: Path, name: Callable[[str], str]) -> None:
    held = {name(old): tensor for old, tensor in safetensors.torch.load_file(file).items()}
    if "text_model.embeddings.token_embedding.weight" in held:
        held["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    safetensors.torch.save_file(held, file, metadata={"format": "pt"})


def test_a_size_that_the_vae_cannot_make():
    refused(PolicyConfig(size=21), ["policy.size: 21", "multiple of"])


@pytest.mark.parametrize("steps", [1000, 1001])
def test_steps_that_the_scheduler_cannot_space(steps):
    refused(PolicyConfig(steps=steps), [f"policy.steps: {steps}: ", "1000 timesteps", "at most 500"])


def test_a_part_that_needs_not_be_there(tmp_path):
    folder = tiny.pipeline(tmp_path / "model")
    tiny.edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )
    assert load(PolicyConfig(model=str(folder))).safety_checker is None


def test_the_hub_is_never_asked_for_a_folder(tmp_path, monkeypatch):
    folder = tiny.pipeline(tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    monkeypatch.setattr("huggingface_hub.file_download._hf_hub_download_to_cache_dir", asked)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
    assert load(PolicyConfig(model="some/model"))
    refused(PolicyConfig(model="some/modle"), ["'some/modle'", "no such file or folder"])
    tiny.edit(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class=None)
    assert load(PolicyConfig(model="some/model"))


def test_a_variant_that_is_not_there():
    refused(PolicyConfig(variant="fp16"), ["fp16.safetensors", "policy.variant"])


def test_an_unreachable_hub_id(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(
        PolicyConfig(model="someone/model", revision="v9"), ["'someone/model'", "'v9'", "give the folder"]
    )


def test_single_files(tmp_path):
    file = tmp_path / "model.ckpt"
    file.touch()
    refused(PolicyConfig(model=str(file)), ["model.ckpt", "pickle", "convert"])
    file = tmp_path / "xl.safetensors"
    name = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
    safetensors.torch.save_file({name: torch.zeros(1280)}, file)
    refused(PolicyConfig(model=str(file)), ["xl.safetensors", "'xl_base'", "1.x or 2.x"])
    file.write_bytes(file.read_bytes()[:-100])
    refused(PolicyConfig(model=str(file)), ["truncated"])


def test_a_single_file_without_a_vae(tmp_path):
    whole = safetensors.torch.load_file(tiny.single_file(PIPELINE, tmp_path / "one.safetensors"))
    kept = {name: held for name, held in whole.items() if not name.startswith("first_stage_model.")}
    safetensors.torch.save_file(kept, tmp_path / "one.safetensors")
    config = PolicyConfig(model=str(tmp_path / "one.safetensors"), config=str(PIPELINE))
    refused(config, ["holds no VAE", "first_stage_model.", "policy.unet"])


def test_a_single_file_with_a_tensor_missing_or_misshapen(tmp_path):
    file = tiny.single_file(PIPELINE, tmp_path / "one.safetensors")
    whole = safetensors.torch.load_file(file)
    config = PolicyConfig(model=str(file), config=str(PIPELINE))
    for name in (
        "model.diffusion_model.time_embed.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
    ):
        safetensors.torch.save_file({key: held for key, held in whole.items() if key != name}, file)
        refused(config, ["one.safetensors", "missing"])
        safetensors.torch.save_file(whole | {name: torch.zeros(3)}, file)
        refused(config, ["one.safetensors", "(3,)"])


def test_a_single_file_with_the_older_names_of_its_text_encoder(tmp_path):
    file = tiny.single_file(PIPELINE, tmp_path / "one.safetensors")
    config = PolicyConfig(model=str(file), config=str(PIPELINE))
    new = load(config).text_encoder.state_dict()
    whole = safetensors.torch.load_file(file)
    older = {name.replace("transformer.text_model.", "transformer."): held for name, held in whole.items()}
    safetensors.torch.save_file(older, file)
    old = load(config).text_encoder.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in new)


def test_the_configs_of_a_single_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tiny.single_file(PIPELINE, tmp_path / "one.safetensors")
    refused(PolicyConfig(model=str(file)), ["policy.config", "stable-diffusion-v1-5", "give the folder"])
    refused(PolicyConfig(model=str(file), config=str(tmp_path)), ["model_index.json is missing"])
    refused(PolicyConfig(config=str(PIPELINE)), ["policy.config", "sandbox", "leave it out"])


def test_a_unet_that_does_not_fit(tmp_path):
    refused(PolicyConfig(unet=tmp_path / "no.safetensors"), ["policy.unet", "no such file"])
    refused(PolicyConfig(unet=tmp_path), ["policy.unet", "no config.json"])
    shutil.copytree(PIPELINE / "unet", tmp_path / "unet")
    tiny.edit(tmp_path / "unet" / "config.json", cross_attention_dim=768)
    refused(PolicyConfig(unet=tmp_path / "unet"), ["policy.unet", "768", "same family"])


class Evil:
    def __reduce__(self):
        return (open, ("/nonexistent/executed", "w"))


def test_a_pickle_is_never_executed(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": Evil()}, file)
    with pytest.raises(UserError, match="could execute code"):
        weight_files.state_dict(file, "reward.pretrained")
    torch.save({"state_dict": {"a": torch.zeros(2, 3)}}, file)
    assert weight_files.shapes(file, "x") == {"a": (2, 3)}
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="truncated or damaged"):
        weight_files.shapes(file, "x")


def test_another_librarys_error_is_shortened_between_words():
    told = reason(ValueError("nothing is there " * 20 + "\nand more"))
    assert told.endswith(("nothing ...", "is ...", "there ..."))
    assert len(told) <= 160
    assert reason(KeyError()) == "KeyError()"
