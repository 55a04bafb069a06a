"""Evaluation beside training: its figures in the journal, the best checkpoint by them, weights unchanged."""

from __future__ import annotations

import json

import pytest

from sdr1.errors import UserError
from sdr1.train import train


def test_figures_reach_the_journal_and_choose_the_best_checkpoint(small, tmp_path):
    plain = train(small(iterations=2, run={"directory": str(tmp_path / "plain")}), local=True)
    config = small(
        iterations=2,
        run={"directory": str(tmp_path / "run")},
        evaluation={"every": 1, "images": 1},
        checkpoint={"best": "-eval/unsafe_trained"},
    )
    assert train(config, local=True).weights_sha256 == plain.weights_sha256
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [row for row in rows if "eval/iteration" in row]
    assert found[-1]["eval/iteration"] == 2
    assert 0 <= found[-1]["eval/utility/overall"] <= 1
    assert 0 <= found[-1]["eval/unsafe_trained"] <= 1


def test_a_best_by_evaluation_needs_evaluations(small):
    with pytest.raises(UserError, match=r"checkpoint.best: eval/unsafe_trained .*evaluation.every"):
        small(checkpoint={"best": "-eval/unsafe_trained"})
