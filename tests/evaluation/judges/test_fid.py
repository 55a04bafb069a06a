"""The Frechet distance against closed forms of Gaussians, and through the sandbox's CLIP; its statistics on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdr1.base.errors import UserError
from sdr1.config.evaluation import read
from sdr1.evaluation.judges import build
from sdr1.evaluation.judges.fid import Distance, measured, pack, reference, unpack
from sdr1.sandbox.world import picture


def to(features: np.ndarray) -> Distance:
    found = Distance(features.shape[1])
    found.update(torch.from_numpy(features).double(), real=True)
    return found


def gaussian(mean: np.ndarray, root: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Features with exactly this mean and the covariance root root^T."""
    white = rng.normal(size=(60, len(mean)))
    white -= white.mean(0)
    white @= np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    return white @ root.T + mean


def test_it_is_the_closed_form_of_gaussians():
    rng = np.random.default_rng(0)
    mean, scales = rng.normal(size=5), rng.uniform(0.5, 2, 5)
    one = gaussian(np.zeros(5), np.eye(5), rng)
    # Of commuting covariances the distance is |m|^2 + sum (s1 - s2)^2.
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    two = gaussian(mean, rotation @ np.diag(scales) @ rotation.T, rng)
    assert to(one).of(two) == pytest.approx(mean @ mean + ((1 - scales) ** 2).sum())
    # In two dimensions tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)), commuting or not.
    roots = rng.normal(size=(2, 2, 2))
    a, b = (root @ root.T for root in roots)
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    made = [gaussian(np.zeros(2), root, rng) for root in roots]
    assert to(made[0]).of(made[1]) == pytest.approx(np.trace(a + b) - 2 * cross)


def test_fewer_images_than_features_are_no_harm():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(50, 80))
    assert to(features).of(features) == pytest.approx(0, abs=1e-4)
    worse = [to(features).of(features + s * rng.normal(size=(50, 80))) for s in (0.1, 0.5, 2)]
    assert worse == sorted(worse)
    assert worse[0] > 0.01


def test_through_clip_it_grows_with_corruption_and_its_statistics_are_kept(tmp_path: Path):
    judge = build("fid", read({"clip": {"model": "sandbox"}}), "cpu")
    images = np.stack([picture(50_000 + n)[1] for n in range(120)])
    keep = tmp_path / "reference.npz"
    first = measured(lambda: [images[:70], images[70:]], judge, keep, "a")
    rng = np.random.default_rng(0)

    def distance(found: Distance, noise: float) -> float:
        spoiled = (images + noise * rng.normal(size=images.shape)).clip(0, 255).astype(np.uint8)
        return found.of(unpack(judge.judge(spoiled, [])))

    assert distance(first, 0) == pytest.approx(0, abs=1e-6)
    worse = [distance(reference(None, judge, keep), noise) for noise in (0, 10, 40, 120)]
    assert worse == sorted(worse)
    assert worse[1] > 1e-4
    judge.provenance["sha256"] = "another"
    with pytest.raises(UserError, match="another feature extractor"):
        reference(None, judge, keep)


def test_another_reference_gives_another_distance(tmp_path: Path):
    judge = build("fid", read({"clip": {"model": "sandbox"}}), "cpu")
    keep, seen = tmp_path / "reference.npz", []
    features = judge.features
    judge.features = lambda images: seen.append(len(images)) or features(images)
    for name, first in (("one", 0), ("two", 500)):
        (tmp_path / name).mkdir()
        for n in range(4):
            Image.fromarray(picture(first + n)[1]).save(tmp_path / name / f"{n}.png")
    images = features(np.stack([picture(n)[1] for n in range(4)]))
    one, again, two, back = (
        reference(tmp_path / name, judge, keep).of(images) for name in ("one", "one", "two", "one")
    )
    assert one == again == back == pytest.approx(0, abs=1e-5)
    assert two > 0.01
    assert seen == [4, 4, 4], "what is kept of the same images is not made again"
    Image.fromarray(picture(900)[1]).save(tmp_path / "one" / "0.png")
    assert reference(tmp_path / "one", judge, keep).of(images) > 1e-4


def test_features_travel_as_text():
    features = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    assert np.array_equal(unpack({"features": pack(row)} for row in features), features)
