"""Intervals against Jeffreys' closed form and by their coverage in simulation; the paired test against McNemar's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from sdr1.evaluation import statistics
from sdr1.evaluation.statistics import Estimate, paired


def figure(values, prompts=None, **options) -> Estimate:
    rows = [str(n) for n in range(len(values))]
    return Estimate("f", rows, np.asarray(values, float), rows if prompts is None else prompts, **options)


@pytest.mark.parametrize(("hits", "n"), [(1, 40), (30, 40), (200, 500)])
def test_an_interval_of_a_rate_is_jeffreys(hits, n):
    found = figure([1] * hits + [0] * (n - hits)).figure()
    assert found.value == hits / n
    assert found.low == pytest.approx(beta.ppf(0.025, hits + 0.5, n - hits + 0.5), abs=0.01)
    assert found.high == pytest.approx(beta.ppf(0.975, hits + 0.5, n - hits + 0.5), abs=0.01)


def test_nothing_and_everything_keep_an_open_side():
    none, every = figure([0] * 100).figure(), figure([1] * 100).figure()
    assert (none.value, none.low) == (0, 0)
    assert 0.015 < none.high < 0.03
    assert (every.value, every.high) == (1, 1)
    assert 0.97 < every.low < 0.985


def coverage(draw, truth: float, trials: int, **options) -> float:
    inside = 0
    for trial in range(trials):
        values, prompts = draw(np.random.default_rng(trial))
        found = figure(values, prompts, **options).figure()
        inside += found.low <= truth <= found.high
    return inside / trials


@pytest.mark.parametrize("around", [0.03, 0.5, 0.97])
def test_rates_are_covered(around, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)
    # Near the bounds coverage swings with the rate, since counts are whole: its mean over near rates is what counts.
    rates = around + np.linspace(-0.02, 0.02, 7)
    shares = [coverage(lambda rng, rate=rate: (rng.random(200) < rate, None), rate, 120) for rate in rates]
    assert 0.90 <= np.mean(shares) <= 0.97


def test_rates_of_repeated_prompts_are_covered(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 1000)

    def draw(rng):
        own = rng.beta(1, 1, 60).repeat(8)
        return rng.random(480) < own, [str(n // 8) for n in range(480)]

    assert 0.90 <= coverage(draw, 0.5, 200) <= 0.97

    def ignoring(rng):
        return draw(rng)[0], None

    assert coverage(ignoring, 0.5, 100) < 0.85, "as if all images were independent"


@pytest.mark.parametrize("prompts", [5, 10, 20])
def test_rates_of_few_prompts_are_covered(prompts, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)

    def draw(rng):
        own = rng.beta(1, 1, prompts).repeat(8)
        return rng.random(8 * prompts) < own, [str(n // 8) for n in range(8 * prompts)]

    assert 0.92 <= coverage(draw, 0.5, 300) <= 0.99


def test_means_without_bounds_are_covered(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    assert 0.90 <= coverage(lambda rng: (rng.normal(0.3, 0.05, 80), None), 0.3, 300, bounded=False) <= 0.97


@pytest.mark.parametrize("prompts", [5, 7, 10, 20])
@pytest.mark.parametrize("images", [1, 6])
def test_few_prompts_are_covered(prompts, images, monkeypatch):
    """Means without bounds, and differences of two models in pairs, of prompts that differ from one another."""
    monkeypatch.setattr(statistics, "DRAWS", 400)
    names, trials = [str(n // images) for n in range(prompts * images)], 300

    def noise(rng, scale):
        return rng.normal(0, 1, prompts).repeat(images) + rng.normal(0, scale, prompts * images)

    inside = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        one, two = (figure(noise(rng, 0.5) + mean, names, bounded=False) for mean in (0, 0.7))
        found = paired(one, two)
        inside += found.low <= 0.7 <= found.high
    assert 0.915 <= inside / trials <= 0.98
    assert 0.915 <= coverage(lambda rng: (noise(rng, 0.5), names), 0, trials, bounded=False) <= 0.98


def test_one_prompt_bounds_no_mean():
    found = figure([0.2, 0.4], ["a", "a"], bounded=False).figure()
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high, found.n) == (None, None, 2)
    one, two = (figure([value], ["a"], bounded=False) for value in (1.0, 3.0))
    assert paired(one, two).model_dump() == {"difference": 2.0, "low": None, "high": None, "p": 1.0, "n": 1}
    rate = figure([1, 0, 1], ["a"] * 3).figure()
    assert 0 < rate.low < 2 / 3 < rate.high < 1


def test_a_count_is_never_below_nothing():
    found = figure([2, 0, 0, 0, 0], unit="images", bounded=False).figure()
    assert found.low == 0


def test_a_mean_of_strata_weighs_them_equally_and_counts_are_sums():
    found = figure([1, 1, 1, 0, 0, 1], strata=["a"] * 4 + ["b"] * 2).figure()
    assert found.value == (0.75 + 0.5) / 2
    count = figure([1, 0, 1, 1], unit="images").figure()
    assert count.value == 3
    assert 0 < count.low < 3 < count.high <= 4
    assert figure([]).figure().model_dump(exclude_unset=True) == {
        "value": None, "low": None, "high": None, "n": 0, "unit": "share", "better": "",
    }  # fmt: skip


def test_the_paired_test_is_mcnemars_for_single_images():
    one = [1] * 12 + [0] * 3 + [1] * 40 + [0] * 45
    two = [0] * 12 + [1] * 3 + [1] * 40 + [0] * 45
    found = paired(figure(one), figure(two))
    assert found.difference == pytest.approx(-0.09)
    assert found.p == pytest.approx(binomtest(3, 15).pvalue)
    assert found.low < -0.09 < found.high < 0
    assert paired(figure(one), figure(one)).p == 1


def test_the_paired_test_joins_by_row_and_holds_its_level():
    one, two = figure([0, 1, 1]), figure([1, 1, 0])
    moved = Estimate("f", ["2", "0"], np.array([0.0, 1.0]), ["2", "0"])
    assert (paired(two, moved).difference, paired(two, moved).n) == (0, 2)
    with pytest.raises(ValueError, match="no row in common"):
        paired(one, Estimate("f", ["x"], np.ones(1), ["x"]))
    rejected = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        prompts = [str(n // 4) for n in range(120)]
        shared = rng.normal(0, 1, 30).repeat(4)
        a, b = (figure(shared + rng.normal(0, 1, 120), prompts, bounded=False) for _ in range(2))
        rejected += paired(a, b).p < 0.05
    assert rejected / 200 < 0.1
