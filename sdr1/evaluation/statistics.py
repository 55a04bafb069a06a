"""Figures of an evaluation with their uncertainty: intervals over prompts, and paired tests of two models.

The bootstrap is Rubin's Bayesian one (1981): every prompt gets an exponential weight. Between 0 and 1 two half
observations, one at each bound, join in; for a rate that is exactly Jeffreys' interval, which covers near 0 and 1 too,
where resampling finds nothing but zeros. Elsewhere its draws are stretched around the mean as Student's t asks: of few
prompts their spread says too little of the mean's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdr1.evaluation.result import Better, Figure, Paired, Unit

DRAWS, LEVEL = 4000, 0.95
_CHUNK = 2**22


@dataclass(frozen=True)
class Estimate:
    """A named mean over images: `values` and `prompts` (whatever repeats together) have one entry an image."""

    name: str
    rows: Sequence[str]
    values: np.ndarray
    """Shape (N,), float64."""
    prompts: Sequence[str]
    bounded: bool = True
    """Whether every value lies in [0, 1]."""
    unit: Unit = "share"
    """Of "images" the sum is reported instead of the mean."""
    better: Better = ""
    strata: Sequence[str] | None = None
    """Report the mean of the strata's means, as GenEval does with its tasks."""
    fixed: Figure | None = None
    """The figure itself where it is no mean (FID)."""

    @property
    def count(self) -> bool:
        return self.unit == "images"

    def figure(self) -> Figure:
        """The value with its 95 % interval, None of nothing; of images it is their number."""
        if self.fixed is not None:
            return self.fixed
        n = len(self.values)
        if n == 0:
            return Figure(value=None, unit=self.unit, better=self.better, low=None, high=None, n=0)
        scale = n if self.count else 1
        value = float(round(self.mean() * n)) if self.count else self.mean()
        low, high = (None if bound is None else scale * bound for bound in self._interval())
        return Figure(value=value, unit=self.unit, better=self.better, low=low, high=high, n=n)

    def mean(self) -> float:
        """Of the values, or of the strata's means."""
        return float(np.mean([self.values[part].mean() for part in self._parts()]))

    def _parts(self) -> list[np.ndarray]:
        if self.strata is None:
            return [np.arange(len(self.values))]
        names = np.asarray(self.strata)
        return [np.flatnonzero(names == name) for name in dict.fromkeys(self.strata)]

    def _interval(self) -> tuple[float | None, float | None]:
        prompts = np.asarray(self.prompts)
        each = [
            draws(self.values[part], prompts[part], bounded=self.bounded, seed=number)
            for number, part in enumerate(self._parts())
        ]
        low, high = _quantiles(np.mean(each, axis=0))
        if self.bounded:
            # Nothing seen is compatible with a rate of nothing; the same at the other end.
            low = 0.0 if self.values.max() == 0 else low
            high = 1.0 if self.values.min() == 1 else high
        elif self.count and low is not None:
            low = max(0.0, low)
        return low, high


def draws(values: np.ndarray, prompts: np.ndarray, *, bounded: bool, seed: int = 0) -> np.ndarray:
    """Bayesian bootstrap of the mean of `values` over prompts, shape (DRAWS,), float64; NaN where nothing bounds the
    mean that one prompt alone has."""
    _, index = np.unique(prompts, return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index).astype(float)
    shapes = np.ones(len(sums))
    if bounded:
        # As heavy as a prompt: how alike its images are is not known.
        size = counts.mean()
        sums, counts = np.append(sums, [0, size]), np.append(counts, [size, size])
        shapes = np.append(shapes, [0.5, 0.5])
    generator = np.random.default_rng(seed)
    made = []
    step = max(1, _CHUNK // len(sums))
    for start in range(0, DRAWS, step):
        weights = generator.standard_gamma(shapes, (min(step, DRAWS - start), len(sums)))
        made.append((weights @ sums) / (weights @ counts))
    found = np.concatenate(made)
    return found if bounded else values.mean() + _stretch(len(sums)) * (found - values.mean())


def _stretch(prompts: int) -> float:
    """What turns the bootstrap's normal quantiles and its variance, sum of squares / P (P + 1), into Student's t and
    the variance of a mean, sum of squares / P (P - 1)."""
    from scipy.stats import norm, t

    if prompts == 1:
        return np.nan
    quantiles = t.ppf((1 + LEVEL) / 2, prompts - 1) / norm.ppf((1 + LEVEL) / 2)
    return float(quantiles * np.sqrt((prompts + 1) / (prompts - 1)))


def _quantiles(draws_D: np.ndarray) -> tuple[float | None, float | None]:
    """Bounds of the interval; None where nothing is known of them."""
    low, high = np.quantile(draws_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return (None, None) if np.isnan(low) else (low, high)


def paired(one: Estimate, two: Estimate) -> Paired:
    """How `two` differs from `one` on the images that both have, row by row.

    `difference` of the means (two - one) with its 95 % interval by the bootstrap over prompts (None of one prompt), and the two-sided `p`
    of a sign-flip test over prompts: under the null hypothesis a prompt's difference is as likely the other way.

    Raises:
        ValueError: they have no row in common.
    """
    place = {row: n for n, row in enumerate(one.rows)}
    common = [(place[row], n) for n, row in enumerate(two.rows) if row in place]
    if not common:
        raise ValueError(f"{one.name}: the two evaluations have no row in common")
    first, second = np.array(common).T
    difference = two.values[second] - one.values[first]
    prompts = np.asarray(two.prompts)[second]
    low, high = _quantiles(draws(difference, prompts, bounded=False))
    scale = len(difference) if one.count else 1
    return Paired(
        difference=scale * float(difference.mean()),
        low=None if low is None else scale * low,
        high=None if high is None else scale * high,
        p=_sign_flip(difference, prompts),
        n=len(difference),
    )


def _sign_flip(difference: np.ndarray, prompts: np.ndarray) -> float:
    from scipy.stats import binomtest

    _, index = np.unique(prompts, return_inverse=True)
    sums = np.bincount(index, difference)
    sums = sums[np.abs(sums) > 1e-12]
    if len(sums) == 0:
        return 1.0
    if np.allclose(np.abs(sums), np.abs(sums[0])):
        # All of one size: the exact test, which for single images is McNemar's.
        return float(binomtest(int((sums > 0).sum()), len(sums)).pvalue)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (10_000, len(sums)))
    extreme = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12
    return float((1 + extreme.sum()) / (1 + len(extreme)))
