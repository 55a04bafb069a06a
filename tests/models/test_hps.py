"""HPS v2 through open_clip against hpsv2's own model and preprocessing, on one set of random weights."""

from __future__ import annotations

import json
import sys
from unittest.mock import MagicMock

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdr1.base.errors import UserError
from sdr1.config.rewards import RewardConfig
from sdr1.models import hps
from sdr1.models.embedder import Embedder, find
from sdr1.rewards import scorer
from tests import tiny


@pytest.fixture
def original(tmp_path, monkeypatch):
    """hpsv2's own CLIP class with random weights, saved as HPS files are; open_clip knows its architecture."""
    # The wheel lacks the vocabulary that its tokenizer reads at import; the models do not need it.
    monkeypatch.setitem(sys.modules, "hpsv2.src.open_clip.tokenizer", MagicMock())
    from hpsv2.src.open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    architecture = tmp_path / "tiny-hps.json"
    architecture.write_text(json.dumps(tiny.CLIP_CONFIG))
    open_clip.add_model_config(architecture)
    monkeypatch.setattr(hps, "ARCHITECTURE", "tiny-hps")
    torch.manual_seed(0)
    config = tiny.CLIP_CONFIG
    model = CLIP(
        config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    ).eval()
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, file)
    return model, file


def test_images_and_texts_equal_the_originals(original):
    from hpsv2.src.open_clip.transform import image_transform

    model, file = original
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), np.uint8)
    preprocess = image_transform(32, is_train=False)
    embedder = Embedder("hps-v2.1", file, "cpu", batch=2)
    texts = ["a red circle", "an owl"]
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        seen = model.encode_image(pixels, normalize=True)
        said = model.encode_text(open_clip.SimpleTokenizer()(texts), normalize=True)
    assert torch.allclose(hps.preprocess({"size": 32, "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD})(torch.tensor(images).permute(0, 3, 1, 2)), pixels, atol=1e-5)  # fmt: skip
    assert torch.allclose(embedder.images(images), seen, atol=1e-5)
    assert torch.allclose(embedder.texts(texts), said, atol=1e-5)


def test_weights_of_another_architecture_are_named(original, tmp_path):
    model, _ = original
    state = model.state_dict()
    state["visual.extra"] = state.pop("visual.proj")
    state["ln_final.weight"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(UserError) as caught:
        scorer.check(RewardConfig(model="hps-v2.1", pretrained=tmp_path / "other.pt"))
    for part in (
        "reward.pretrained",
        "missing (visual.proj)",
        "unexpected (visual.extra)",
        "ln_final.weight (3,)",
    ):
        assert part in str(caught.value)


def test_the_file_of_a_version_comes_from_hpsv2s_own_map(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names: asked.append(names) or "/there.pt")
    for model in hps.MODELS:
        hps.fetch(model, "reward")
    assert asked == [("xswu/HPSv2", "HPS_v2_compressed.pt"), ("xswu/HPSv2", "HPS_v2.1_compressed.pt")]


def test_a_name_without_weights_is_refused():
    with pytest.raises(UserError, match=r"reward\.pretrained: none given.*random weights.*openai"):
        find("ViT-L-14", None)
    assert find("ViT-L-14", "openai").weights == "openai"
    with pytest.raises(UserError, match=r"reward\.model: 'ViT-Q'.*no such model"):
        find("ViT-Q", None)


def test_a_hub_model_that_is_not_there_is_refused_before_a_run_starts(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"reward.model: 'hf-hub:some/one': .*; check the name.*local-dir:FOLDER"
    ):
        scorer.check(RewardConfig(model="hf-hub:some/one"))


@pytest.fixture
def folder(tmp_path):
    """A folder that open_clip loads: its config, its weights."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny.CLIP_CONFIG}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**tiny.CLIP_CONFIG).state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "held",
    [
        "[" * 10**5,
        "[]",
        "{}",
        '{"model_cfg": 3}',
        '{"model_cfg": {}}',
        {"model_cfg": {**tiny.CLIP_CONFIG, "embed_dim": "many"}},
        {"model_cfg": {**tiny.CLIP_CONFIG, "embed_dim": 33}},
        {"model_cfg": {**tiny.CLIP_CONFIG, "colour": 1}},
        {"model_cfg": {**tiny.CLIP_CONFIG, "vision_cfg": None}},
        {"model_cfg": {**tiny.CLIP_CONFIG, "text_cfg": {**tiny.CLIP_CONFIG["text_cfg"], "heads": 7}}},
        {"model_cfg": tiny.CLIP_CONFIG, "preprocess_cfg": {"mean": [0.5, 0.5]}},
        {"model_cfg": tiny.CLIP_CONFIG, "preprocess_cfg": {"size": "large"}},
        {"model_cfg": tiny.CLIP_CONFIG, "preprocess_cfg": [1]},
    ],
)
def test_a_malformed_clip_folder_is_refused_before_a_run_starts(folder, held):
    scorer.check(RewardConfig(model=f"local-dir:{folder}"))
    text = held if isinstance(held, str) else json.dumps(held)
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(UserError, match=r"^reward\.model: .*open_clip") as caught:
        scorer.check(RewardConfig(model=f"local-dir:{folder}"))
    assert len(str(caught.value).splitlines()) == 1


def test_the_weights_of_a_clip_folder_fit_and_are_no_pickle(folder):
    file = folder / "open_clip_model.safetensors"
    state = load_file(file)
    state["visual.extra"] = state.pop("visual.proj")
    save_file(state, file)
    with pytest.raises(
        UserError, match=r"^reward\.model: .*missing \(visual\.proj\).*unexpected \(visual\.extra\)"
    ):
        scorer.check(RewardConfig(model=f"local-dir:{folder}"))
    # open_clip prefers a name that it knows, though it is a pickle's.
    file.rename(folder / "other.safetensors")
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"^reward\.model: .*open_clip_pytorch_model\.bin; save .* not as a pickle"
    ):
        scorer.check(RewardConfig(model=f"local-dir:{folder}"))


def test_weights_that_are_not_numbers_are_refused_and_nothing_is_judged_by_them(folder):
    embedder = Embedder(f"local-dir:{folder}", None, "cpu", field="q16")
    embedder._model.visual.proj.data *= float("nan")
    with pytest.raises(UserError, match=r"^q16\.model: .*embeddings are not finite"):
        embedder.images(np.zeros((1, 32, 32, 3), np.uint8))
    file = folder / "open_clip_model.safetensors"
    state = load_file(file)
    save_file({**state, "visual.proj": state["visual.proj"] * float("nan")}, file)
    with pytest.raises(UserError, match=r"^q16\.model: .*visual\.proj holds numbers that are not finite"):
        Embedder(f"local-dir:{folder}", None, "cpu", field="q16")
