"""Figures of an evaluation with their uncertainty: intervals over prompts, and paired tests of two models.

The bootstrap is Rubin's Bayesian one (1981): every prompt gets an exponential weight. Between 0 and 1 two half
observations, one at each bound, join in; for a rate that is exactly Jeffreys' interval, which covers near 0 and 1 too,
where resampling finds nothing but zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

DRAWS, LEVEL = 4000, 0.95
_CHUNK = 2**22


@dataclass(frozen=True)
class Figure:
    """A named mean over images: `values` and `prompts` (whatever repeats together) have one entry an image."""

    name: str
    rows: Sequence[str]
    values: np.ndarray
    """Shape (N,), float64."""
    prompts: Sequence[str]
    bounded: bool = True
    """Whether every value lies in [0, 1]."""
    count: bool = False
    """Report the sum instead of the mean."""
    strata: Sequence[str] | None = None
    """Report the mean of the strata's means, as GenEval does with its tasks."""
    fixed: dict[str, float | int | None] = field(default_factory=dict)
    """Of a figure that is no mean (FID): value, low, high and n as they are."""

    def summary(self) -> dict[str, float | int | None]:
        """`value`, `low` and `high` of the 95 % interval, and `n`, the number of images; None of nothing."""
        if self.fixed:
            return self.fixed
        n = len(self.values)
        if n == 0:
            return {"value": None, "low": None, "high": None, "n": 0}
        scale = n if self.count else 1
        value = self.mean()
        low, high = self._interval()
        if self.count:
            value = float(round(value * n))
        return {"value": value, "low": scale * low, "high": scale * high, "n": n}

    def mean(self) -> float:
        """Of the values, or of the strata's means."""
        return float(np.mean([self.values[part].mean() for part in self._parts()]))

    def _parts(self) -> list[np.ndarray]:
        if self.strata is None:
            return [np.arange(len(self.values))]
        names = np.asarray(self.strata)
        return [np.flatnonzero(names == name) for name in dict.fromkeys(self.strata)]

    def _interval(self) -> tuple[float, float]:
        prompts = np.asarray(self.prompts)
        each = [
            draws(self.values[part], prompts[part], bounded=self.bounded, seed=number)
            for number, part in enumerate(self._parts())
        ]
        low, high = np.quantile(np.mean(each, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if self.bounded:
            # Nothing seen is compatible with a rate of nothing; the same at the other end.
            low = 0.0 if self.values.max() == 0 else low
            high = 1.0 if self.values.min() == 1 else high
        return float(low), float(high)


def draws(values: np.ndarray, prompts: np.ndarray, *, bounded: bool, seed: int = 0) -> np.ndarray:
    """Bayesian bootstrap of the mean of `values` over prompts, shape (DRAWS,), float64."""
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
    return np.concatenate(made)


def paired(one: Figure, two: Figure) -> dict[str, float | int]:
    """How `two` differs from `one` on the images that both have, row by row.

    `difference` of the means (two - one) with its 95 % interval by the bootstrap over prompts, and the two-sided `p`
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
    low, high = np.quantile(draws(difference, prompts, bounded=False), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    scale = len(difference) if one.count else 1
    return {
        "difference": scale * float(difference.mean()),
        "low": scale * float(low),
        "high": scale * float(high),
        "p": _sign_flip(difference, prompts),
        "n": len(difference),
    }


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
