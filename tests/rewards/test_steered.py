"""The steered reward on drawn pictures, and its preprocessing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from sdr1.base.errors import UserError
from sdr1.base.records import Prompt
from sdr1.config.rewards import RewardConfig
from sdr1.config.training import validate
from sdr1.models.embedder import Embedder, _batch_preprocess
from sdr1.rewards.scorer import Scorer
from sdr1.rewards.steered import SteeredReward
from sdr1.sandbox import CLIP
from sdr1.sandbox.prompts import prompts
from sdr1.sandbox.world import picture


def pictures(task: str, count: int = 40, kind: str = "") -> np.ndarray:
    """Of a task; with `kind`, those of which it is the first thing."""
    drawn = (picture(10**6 + n, task) for n in range(20 * count))
    return np.stack([image for scene, image in drawn if scene.things[0].kind.startswith(kind)][:count])


def auc(alpha: float, topic: str) -> float:
    reward = SteeredReward(RewardConfig(alpha=alpha, anchors="sandbox"))
    benign = pictures("single_object")
    unsafe = pictures("unsafe", kind="" if topic == "generic" else topic)
    rates = []
    for prompt in prompts(topic, "tune", 4):
        asked = Prompt(prompt.text, "unsafe")
        rates.append((reward(benign, asked)[:, None] > reward(unsafe, asked)[None]).mean())
    return float(np.mean(rates))


def test_steering_turns_the_preference_around():
    for topic in ("skull", "flame", "blade", "generic"):
        assert auc(0, topic) < 0.3
        assert auc(1.5, topic) > 0.9


def test_who_is_steered():
    def target(steer: str, prompt: Prompt) -> torch.Tensor:
        return SteeredReward(RewardConfig(alpha=1, anchors="sandbox", steer=steer)).target(prompt)

    safe, unsafe = Prompt("a red circle", "safe"), Prompt("a skull", "unsafe")
    assert not torch.equal(target("all", safe), target("unsafe", safe))
    assert torch.equal(target("all", unsafe), target("unsafe", unsafe))
    # The sign of the score decides whatever the label says.
    wholesome, deadly = Prompt("a safe picture", "unsafe"), Prompt("a deadly thing", "safe")
    assert torch.equal(target("score", wholesome), target("unsafe", Prompt(wholesome.text, "safe")))
    assert torch.equal(target("score", deadly), target("all", deadly))


def test_tensor_preprocessing_equals_open_clips_own():
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    images = pictures("two_object", 6)
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        expected = torch.nn.functional.normalize(model.eval().encode_image(batch), dim=-1)
    assert torch.allclose(Embedder("sandbox", None, "cpu").images(images), expected, atol=5e-3)


@pytest.mark.parametrize("shape", [(40, 71), (71, 40), (20, 20)])
@pytest.mark.parametrize("size", [32, (32, 32), (24, 40)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_every_resize_mode_equals_open_clips_own(mode, size, shape, interpolation):
    import open_clip

    settings = dataclasses.asdict(
        open_clip.transform.PreprocessCfg(
            size=size, resize_mode=mode, interpolation=interpolation, fill_color=90
        )
    )
    # A gradient: the two libraries' rounding differs little where neighbours do.
    x, y = np.meshgrid(np.linspace(0, 200, shape[1]), np.linspace(0, 55, shape[0]))
    image = np.stack([x, x + y, y], axis=2).astype(np.uint8)
    image[: shape[0] // 3, : shape[1] // 4] = 255
    own = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**settings), False)
    expected = own(Image.fromarray(image))
    found = _batch_preprocess(settings)(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    assert found.shape == expected.shape
    # Where a white corner overshoots, the libraries clamp after one pass or after both.
    assert (found - expected).abs().mean() < 0.002
    assert (found - expected).abs().max() < 0.15


def test_anchors_without_a_direction_are_refused():
    same = {"kind": "steered", "anchors": {"safe": ["A  skull"], "unsafe": ["a skull"]}}
    with pytest.raises(UserError, match=r"^reward\.terms\.x.*anchors.*no direction leads"):
        validate({"reward": {"terms": {"x": same}}})
    # Phrases that the encoder alone takes for equal are known once it is loaded.
    alike = validate({"reward": {"anchors": {"safe": ["a skull", "a skull"], "unsafe": ["a skull"]}}})
    with pytest.raises(UserError, match=r"^reward\.anchors: .*same mean embedding.*; give phrases"):
        Scorer(alike.reward)


def test_the_embedder_keeps_the_latest_texts_only(monkeypatch):
    texts = [f"{n} rings" for n in range(7)]
    expected = torch.cat([Embedder("sandbox", None, "cpu").texts([text]) for text in texts])
    monkeypatch.setattr("sdr1.models.embedder._KEPT_TEXTS", 3)
    embedder = Embedder("sandbox", None, "cpu", batch=2)
    for _ in range(2):
        assert torch.allclose(embedder.texts(texts), expected, atol=1e-6)
        assert len(embedder._texts) == 3
