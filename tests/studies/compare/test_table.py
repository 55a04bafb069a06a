"""The comparison's statistics against computations of their own."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import spearmanr

from sdr1.erasers.methods import METHODS
from sdr1.evaluation import statistics
from sdr1.evaluation.statistics import Estimate
from sdr1.report.tables import published_figures
from sdr1.studies.compare import table
from tests.studies.compare.test_run import compared


def pooled(values_SPN: np.ndarray) -> Estimate:
    """A rate of S seeds with N pictures of each of P prompts, joined as the table joins them."""
    seeds, prompts, images = values_SPN.shape
    names = [f"prompt {p}" for p in range(prompts) for _ in range(images)]
    rows = [f"row {n}" for n in range(prompts * images)]
    each = [Estimate("utility", rows, values_SPN[s].ravel(), names) for s in range(seeds)]
    return table._joined("utility", [table._of_seed(one, "utility", s) for s, one in enumerate(each)])


def difference_of(reference: np.ndarray, method: np.ndarray):
    estimates = {"r1": {"utility": pooled(reference)}, "uce": {"utility": pooled(method)}}
    return table.tests(estimates, "r1")["uce"]["utility"]


def drawn(rng: np.random.Generator, shape: tuple[int, ...], shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Two methods' hits: a prompt is as hard for all seeds, and its noise is the same for both methods."""
    hard = rng.normal(0, 0.3, (1, shape[1], 1))
    moved = rng.normal(shift, 0.3, (1, shape[1], 1))
    noise = rng.uniform(size=shape)
    one = (noise < 0.5 + hard).astype(float)
    return one, (noise < 0.5 + hard + moved).astype(float)


def test_a_difference_and_its_p_are_those_of_every_flip_of_the_prompts_signs() -> None:
    one, two = drawn(np.random.default_rng(3), (3, 11, 2), 0.2)
    by_prompt = [(two[:, p] - one[:, p]).sum() for p in range(11)]
    assert len(set(map(abs, by_prompt))) > 2
    sums = [
        abs(sum(sign * each for sign, each in zip(signs, by_prompt, strict=True)))
        for signs in itertools.product((1, -1), repeat=11)
    ]
    p = sum(each >= abs(sum(by_prompt)) - 1e-9 for each in sums) / len(sums)
    found = difference_of(one, two)
    assert found.n == 66
    assert found.difference == pytest.approx(sum(by_prompt) / 66)
    assert found.p == pytest.approx(p, abs=4 * (p * (1 - p) / 10_000) ** 0.5 + 2e-4)


def test_intervals_of_pooled_seeds_hold_the_true_difference_in_95_of_100(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 600)
    rng, truth = np.random.default_rng(0), []
    # What the shift comes to where rates end at 0 and 1.
    for _ in range(40):
        one, two = drawn(rng, (3, 2000, 1), 0.1)
        truth.append((two - one).mean())
    inside, ignoring = 0, 0
    for _ in range(300):
        one, two = drawn(rng, (3, 40, 1), 0.1)
        found = difference_of(one, two)
        inside += found.low <= np.mean(truth) <= found.high
        difference = (two - one).ravel()
        reach = 1.96 * difference.std() / len(difference) ** 0.5
        ignoring += abs(difference.mean() - np.mean(truth)) <= reach
    assert 0.92 <= inside / 300 <= 0.98
    assert ignoring / 300 < 0.9, "as if the seeds' pictures of a prompt were independent"


def test_a_test_at_5_percent_rejects_equal_methods_in_5_of_100() -> None:
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(200):
        one, two = drawn(rng, (3, 30, 1), 0.0)
        swap = rng.integers(2, size=(1, 30, 1)).astype(bool)
        rejected += difference_of(np.where(swap, one, two), np.where(swap, two, one)).p < 0.05
    assert rejected / 200 < 0.1


def test_the_pooled_rates_are_those_counted_by_hand(tmp_path) -> None:
    out = tmp_path / "out"
    compared(out)
    told = json.loads((out / "summary.json").read_text())["methods"]
    flags = defaultdict(list)
    for row in json.loads((out / "table.json").read_text()):
        folder = out / "cells" / row["cell"] / "evaluation"
        records = [json.loads(line) for line in (folder / "records-oracle.jsonl").read_text().splitlines()]
        lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        for line, record in zip(lines, records, strict=True):
            flags[row["method"], line["facts"]["topic"]].append(record["unsafe"])
    for method in ("base", "r1", "uce", "uce-head"):
        trained = flags[method, "skull"]
        assert told[method]["unsafe_trained"]["value"] == pytest.approx(sum(trained) / len(trained))
        assert told[method]["unsafe_trained"]["n"] == len(trained) == 4
        others = {name.partition("/")[2] for name in told[method] if name.startswith("unsafe_untrained/")}
        assert len(others) == 6
        spread = [flag for other in others for flag in flags[method, other]]
        assert told[method]["unsafe_untrained"]["value"] == pytest.approx(sum(spread) / len(spread))


def correlated(monkeypatch, ours: dict[str, float], theirs: dict[str, float]) -> table.Correlation:
    monkeypatch.setattr(table, "published_figures", lambda *_: theirs)
    estimates = {
        label: {"unsafe_trained": Estimate("unsafe_trained", ["row"], np.array([rate]), ["prompt"])}
        for label, rate in ours.items()
    }
    return table.correlations(estimates)[0]


def test_the_rank_correlation_is_that_of_ranks_by_hand(monkeypatch) -> None:
    ours = {"base": 0.9, "uce": 0.3, "ca": 0.3, "sld": 0.5, "r1": 0.0, "not published": 0.7}
    theirs = {"SD v1.4": 646.0, "UCE": 182.0, "Ablating (CA)": 301.0, "SLD (medium)": 182.0,
              "SafeDiffusion-R1, main": 30.0, "ESD-x": 200.0}  # fmt: skip
    found = correlated(monkeypatch, ours, theirs)
    assert found.pairs == {
        "base": (0.9, 646), "uce": (0.3, 182), "ca": (0.3, 301), "sld": (0.5, 182), "r1": (0.0, 30)
    }  # fmt: skip
    # Equal figures share the mean of their ranks.
    one, two = np.array([5, 2.5, 2.5, 4, 1]), np.array([5, 2.5, 4, 2.5, 1])
    rho = np.corrcoef(one, two)[0, 1]
    assert found.rho == pytest.approx(rho)
    assert found.rho == pytest.approx(spearmanr(*zip(*found.pairs.values())).statistic)
    every = [abs(np.corrcoef(one, order)[0, 1]) >= abs(rho) - 1e-9 for order in itertools.permutations(two)]
    assert found.p == pytest.approx(np.mean(every))
    assert f"5 models: {rho:+.2f} (p = {found.p:.3f})" in str(found)


def test_without_an_order_there_is_no_correlation_and_three_models_prove_nothing(monkeypatch) -> None:
    theirs = {"UCE": 1.0, "CA": 2.0, "SLD": 3.0}
    assert correlated(monkeypatch, {"uce": 0.1, "ca": 0.2, "sld": 0.3}, theirs)[3:] == (
        pytest.approx(1),
        pytest.approx(1 / 3),
    )
    assert (
        correlated(monkeypatch, {"uce": 0.1, "ca": 0.2, "sld": 0.3}, dict.fromkeys(theirs, 5.0)).rho is None
    )
    assert correlated(monkeypatch, {"uce": 0.1, "ca": 0.1, "sld": 0.1}, theirs).rho is None
    few = correlated(monkeypatch, {"uce": 0.1, "ca": 0.2}, theirs)
    assert str(few).endswith("2 models: none")


def test_every_published_row_is_a_model_of_ours_or_left_out_for_a_reason() -> None:
    known = {"base", "r1", "r1-unsafe-anchor", *METHODS}
    for _, name, key, _ in table._ORDERS:
        found = published_figures(name, key)
        assert len(found) >= 10
        ours = {table._ours(row) for row in found if "(partial)" not in row}
        assert ours <= known
        assert len(ours) == sum("(partial)" not in row for row in found), "two rows of one name"
        assert not {table._ours(row) for row in found if "(partial)" in row} & known
