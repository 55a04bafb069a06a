"""CLIP-T and FID of a comparison's cells: of safe prompts alone, the seeds' pictures together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdr1.base.section import SANDBOX
from sdr1.config.evaluation import ClipConfig, EvaluationConfig
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.judges.fid import Distance, FidJudge, pack
from sdr1.evaluation.protocols.fid import of_the_sandbox
from sdr1.evaluation.rows import Row
from sdr1.evaluation.sandbox_rows import rows_of
from sdr1.sandbox.captions import TASKS
from sdr1.sandbox.prompts import TOPICS
from sdr1.sandbox.world import picture
from sdr1.studies.compare import quality

WIDTH = 4


def evaluation(path, seed: int, rng) -> tuple[tuple[Folder, list[Row]], np.ndarray, np.ndarray]:
    """A judged folder with its rows, and the cosines and features of its safe prompts' pictures."""
    held, rows = Folder(path), rows_of(TOPICS, 3, seed, split="final")
    held.keep_images(rows, [b""] * len(rows))
    held.write_manifest(rows)
    cosines, features = rng.normal(size=len(rows)), rng.normal(size=(len(rows), WIDTH)).astype(np.float32)
    held.keep_part("clip", 0, [{"cosine": cosine} for cosine in cosines.tolist()])
    held.finish_judge("clip", "clip", rows, [rows])
    held.keep_part("fid", 0, [{"features": pack(each)} for each in features])
    held.finish_judge("fid", "fid", rows, [rows])
    safe = np.array([row.facts["topic"] in TASKS for row in rows])
    assert 0 < safe.sum() < len(rows)
    return (held, rows), cosines[safe], features[safe]


def frechet(one_ND: np.ndarray, two_ND: np.ndarray) -> float:
    """From the definition; the trace of the root of S T is the sum of the roots of its eigenvalues."""
    (mean, covariance), (other, spread) = ((each.mean(0), np.cov(each.T)) for each in (one_ND, two_ND))
    root = np.sqrt(np.linalg.eigvals(covariance @ spread).real.clip(min=0)).sum()
    return float(((mean - other) ** 2).sum() + np.trace(covariance) + np.trace(spread) - 2 * root)


def test_of_safe_prompts_alone_and_of_all_seeds_together(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    (first, cosines, one), (second, _, two) = (evaluation(tmp_path / str(seed), seed, rng) for seed in (1, 2))
    estimate = quality.clip_t(*first)
    assert estimate is not None
    assert estimate.mean() == pytest.approx(cosines.mean())
    assert len(estimate.rows) == len(estimate.prompts) == len(cosines)

    drawn = rng.normal(1, 2, (50, WIDTH)).astype(np.float32)
    reference = Distance(WIDTH)
    reference.update(torch.from_numpy(drawn).double(), real=True)
    monkeypatch.setattr(quality.fid, "of_the_sandbox", lambda judge, keep: reference)
    (tmp_path / "2" / "more").mkdir()
    left_out = Folder(tmp_path / "2" / "more"), []
    found = quality.fids({"r1": [first, second], "uce": [second], "old": [first, left_out]}, tmp_path)
    assert found.keys() == {"r1", "uce"}
    for label, features in (("r1", np.concatenate([one, two])), ("uce", two)):
        figure = found[label].figure()
        assert figure.value == pytest.approx(frechet(features, drawn), rel=1e-5)
        assert (figure.n, figure.low, figure.high) == (len(features), None, None)


def test_what_was_not_judged_has_neither(tmp_path) -> None:
    assert quality.clip_t(Folder(tmp_path), []) is None
    assert quality.fids({"r1": [(Folder(tmp_path), [])]}, tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_the_reference_is_in_the_space_of_the_judges_features(tmp_path) -> None:
    """The base's own drawn world, by the sandbox's CLIP: the distance of its statistics from themselves is nothing."""
    judge = FidJudge(EvaluationConfig(clip=ClipConfig(model=SANDBOX)), "cpu")
    reference = of_the_sandbox(judge, tmp_path / "reference.npz")
    images = np.stack([picture(10_000 + n, TASKS[n % len(TASKS)])[1] for n in range(1200)])
    assert reference.of(judge.features(images)) == pytest.approx(0, abs=1e-5)
    assert (tmp_path / "reference.npz").is_file()
