"""Q16 and GenEval on small models with random weights in the real formats, against the libraries called by hand."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdr1.base.errors import UserError
from sdr1.config.evaluation import read
from sdr1.evaluation.judges import build
from sdr1.evaluation.rows import Row, Sampler
from sdr1.prompts.geneval import COLOURS
from tests import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
KINDS = ("cat", "mouse", "bench")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[Path, Any]:
    """A folder that open_clip loads, and the model in it."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": tiny.CLIP_CONFIG, "preprocess_cfg": {"size": 32}})
    )
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**tiny.CLIP_CONFIG).state_dict(), folder / "open_clip_model.safetensors")
    return folder, open_clip.create_model(f"local-dir:{folder}").eval()


def seen(model: Any, images: list[np.ndarray]) -> np.ndarray:
    """Normalised embeddings through open_clip's own preprocessing, as Q16 and GenEval are run in their papers' code."""
    transform = open_clip.image_transform(32, is_train=False)
    with torch.no_grad():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        return model.encode_image(pixels, normalize=True).numpy()


def test_q16_is_the_argmax_of_cosines(clip, tmp_path):
    folder, model = clip
    embeddings = seen(model, list(IMAGES))
    # Vectors of other lengths than one, on both sides of the images, so that both answers occur.
    vectors = np.stack([3.0 * embeddings[:6].mean(0), 0.2 * embeddings[6:].mean(0)]).astype(np.float32)
    path = tmp_path / "prompts.p"
    path.write_bytes(pickle.dumps(vectors))
    settings = {"q16": {"prompts": path, "model": f"local-dir:{folder}"}}
    judge = build("q16", read(settings), "cpu")
    records = judge.judge(IMAGES, [])
    cosines = embeddings @ (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).T
    np.testing.assert_allclose([record["cosines"] for record in records], cosines, atol=1e-4)
    assert [record["unsafe"] for record in records] == [bool(row.argmax()) for row in cosines]
    assert 0 < sum(record["unsafe"] for record in records) < len(records)
    assert len(judge.provenance["sha256"]) == len(judge.provenance["model_sha256"]) == 64
    path.write_bytes(pickle.dumps(np.ones((2, 31), np.float32)))
    with pytest.raises(UserError, match=r"q16.prompts: .*31.*\(2, 32\)"):
        build("q16", read(settings), "cpu")


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """A Mask2Former of the real format that is sure of a class for each query, and finds random masks."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("detector")
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=4,
        id2label=dict(enumerate(KINDS)),
    )
    torch.manual_seed(1)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(8)
        model.class_predictor.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -20.0]))
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def settings(clip: tuple[Path, Any], detector: Path) -> Any:
    return read({"geneval": {"detector": str(detector), "model": f"local-dir:{clip[0]}"}})


def test_a_clip_of_weights_that_are_not_finite_judges_nothing(clip, tmp_path):
    """Its cosines would be NaN, and NaN flags no image."""
    for file in clip[0].iterdir():
        shutil.copy(file, tmp_path)
    tensors = load_file(tmp_path / "open_clip_model.safetensors")
    tensors["visual.proj"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"clip\.model: .*: visual\.proj holds numbers that are not finite"):
        build("clip", read({"clip": {"model": f"local-dir:{tmp_path}"}}), "cpu")


def row(*clauses: dict[str, Any], tag: str = "colors") -> Row:
    facts = {"metadata": {"tag": tag, "include": list(clauses)}}
    return Row("0", "a", 0, Sampler(), 64, 48, facts)


def test_geneval_reads_classes_boxes_and_colours(clip, detector):
    judge = build("geneval", settings(clip, detector), "cpu")
    found, masks = [], []
    for image in IMAGES:
        both = judge._detect(image)
        found += [detection for detection, _ in both]
        masks += [(image, mask) for _, mask in both]
    assert len(found) > len(IMAGES), "the random detector finds things"
    assert {each.kind for each in found} <= {"cat", "computer mouse", "bench"}
    for each, (_, mask) in zip(found, masks, strict=True):
        assert mask.shape == (48, 64)
        left, top, right, bottom = map(int, each.box)
        assert mask[top:bottom, left:right].sum() == mask.sum() > 0
        edges = mask[top, :], mask[bottom - 1, :], mask[:, left], mask[:, right - 1]
        assert all(edge.any() for edge in edges), "the box is the mask's tight one"
        assert each.score > 0.3
    each, (image, mask) = found[0], masks[0]
    records = judge.judge(image[None], [row({"class": each.kind, "count": 1, "color": "red"})])
    best = max(records[0]["detections"], key=lambda one: (one["kind"] == each.kind, one["score"]))
    index = next(n for n, one in enumerate(found) if list(one.box) == list(best["box"]))
    assert best["colour"] == by_hand(clip[1], masks[index], found[index])
    assert records[0]["correct"] == (best["colour"] == "red")
    right = row({"class": each.kind, "count": 1, "color": best["colour"]})
    assert judge.judge(image[None], [right])[0]["correct"]
    # Nothing is asked of a colour that no clause names.
    plain = judge.judge(image[None], [row({"class": each.kind, "count": 1}, tag="single_object")])[0]
    assert plain["correct"]
    assert {one["colour"] for one in plain["detections"]} == {None}


def by_hand(model: Any, shown: tuple[np.ndarray, np.ndarray], each: Any) -> str:
    """The colour by GenEval's description: the object on #999, cropped to its box, against three templates a colour."""
    image, mask = shown
    ground = np.full_like(image, 0x99)
    ground[mask] = image[mask]
    ys, xs = np.nonzero(mask)
    crop = ground[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    texts = [
        text
        for colour in COLOURS
        for text in (
            f"a photo of a {colour} {each.kind}",
            f"a photo of a {colour}-colored {each.kind}",
            f"a photo of a {colour} object",
        )
    ]
    with torch.no_grad():
        said = model.encode_text(open_clip.SimpleTokenizer()(texts), normalize=True).view(10, 3, -1).mean(1)
    said = said / said.norm(dim=1, keepdim=True)
    return COLOURS[int((said.numpy() @ seen(model, [crop])[0]).argmax())]


def test_an_image_without_anything_in_it_is_wrong_and_no_error(clip, detector, tmp_path):
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    blind = Mask2FormerForUniversalSegmentation.from_pretrained(detector)
    with torch.no_grad():
        blind.class_predictor.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 50.0]))
    blind.save_pretrained(tmp_path)
    Mask2FormerImageProcessor.from_pretrained(detector).save_pretrained(tmp_path)
    judge = build("geneval", settings(clip, tmp_path), "cpu")
    (record,) = judge.judge(IMAGES[:1], [row({"class": "cat", "count": 1})])
    assert record == {"correct": False, "detections": []}
