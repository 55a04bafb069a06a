"""The comparison's tables: a row for each method and seed, and the seeds together with intervals and tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from sdr1.base.files import write_text
from sdr1.base.plain_data import read_as
from sdr1.evaluation.folder import RESULT, Folder
from sdr1.evaluation.protocols.sandbox import figures_of
from sdr1.evaluation.result import Figure, Paired, Result
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate, paired
from sdr1.report.tables import published_figures
from sdr1.studies.compare import quality, work
from sdr1.studies.compare.cells import BASE, Cell

UNTRAINED = "unsafe_untrained"
FIGURES = {
    "unsafe_trained": "unsafe_trained",
    UNTRAINED: UNTRAINED,
    "unsafe_beside": "unsafe_beside",
    "utility": "utility/overall",
    "coherent_unsafe": "coherent_unsafe",
    "over_refusal": "over_refusal",
    "shape_kept": "shape_kept",
    "false_alarm": "false_alarm",
}
"""A rate of the table, and the protocol's figure; a sandbox that does not measure one has no column of it."""

_ORDERS = (
    ("NudeNet, total", "nudenet", "nudity/total", "unsafe_trained"),
    ("Q16, overall", "q16", "inappropriate_rate", UNTRAINED),
)
"""Published tables, and the rate that is nearest to what they count: the erased concept, or all that is unsafe."""
_NAMES = {
    "SD v1.4": BASE,
    "SafeDiffusion-R1, main": "r1",
    "SafeDiffusion-R1, unsafe-anchor": "r1-unsafe-anchor",
    "Ablating (CA)": "ca",
    "Ablating": "ca",
    "Safe-DPO (SD v2.1)": "safetydpo",
    "SLD (medium)": "sld",
    "CPE (1 word)": "cpe",
    "CPE (4 words)": "cpe-4",
}
"""Ours of published rows that have another name. Rows that were published for some categories only have no overall figure
that is like the others', and are left out."""


class Correlation(NamedTuple):
    """Of a published order with ours; `pairs` are measured and published figures by method, `rho` None of too few."""

    title: str
    rate: str
    pairs: dict[str, tuple[float, float]]
    rho: float | None
    p: float | None

    def __str__(self) -> str:
        known = "none" if self.rho is None else f"{self.rho:+.2f} (p = {self.p:.3f})"
        return f"rank correlation with the published order ({self.title}), {len(self.pairs)} models: {known}"


def write(cells: Sequence[Cell], folders: Mapping[str, Path], out: Path) -> list[dict[str, Any]]:
    """Write `table.json`, a row for each finished cell in the order of `cells`, and return it."""
    rows = []
    for cell in cells:
        told = work.done(folders[cell.key])
        if told is None:
            continue
        figures = read_as(Result, folders[cell.key] / work.EVALUATION / RESULT).figures
        rows.append(
            {
                "method": cell.label,
                "seed": cell.seed,
                **_rates(figures),
                "unet_evaluations": told["unet_evaluations"],
                "unet_evaluations_wanted": cell.wanted,
                "budget": cell.budget,
                "seconds": told["seconds"],
                "peak_memory_bytes": told["peak_memory_bytes"],
                "cell": cell.key,
            }
        )
    write_text(out / "table.json", json.dumps(rows, indent=2) + "\n")
    return rows


def _rates(figures: Mapping[str, Figure]) -> dict[str, float]:
    known = {name: figure.value for name, figure in figures.items() if figure.value is not None}
    spread = [value for name, value in known.items() if name.startswith(f"{UNTRAINED}/")]
    if spread:
        known[UNTRAINED] = fmean(spread)
    return {rate: known[name] for rate, name in FIGURES.items() if name in known}


def pooled(cells: Sequence[Cell], folders: Mapping[str, Path], out: Path) -> dict[str, dict[str, Estimate]]:
    """By method, the rates of all its finished seeds' pictures together, CLIP-T and FID, and the protocol's other figures by
    their own names."""
    found: dict[str, dict[str, list[Estimate]]] = {}
    evaluations: dict[str, list[tuple[Folder, list[Row]]]] = {}
    for cell in cells:
        if work.done(folders[cell.key]) is not None:
            held = Folder(folders[cell.key] / work.EVALUATION)
            rows = [line.to_row() for line in held.manifest()]
            evaluations.setdefault(cell.label, []).append((held, rows))
            mine = found.setdefault(cell.label, {})
            for rate, estimate in _estimates(held, rows, cell.seed).items():
                mine.setdefault(rate, []).append(estimate)
    joined = {
        label: {rate: _joined(rate, each) for rate, each in mine.items()} for label, mine in found.items()
    }
    for label, distance in quality.fids(evaluations, out).items():
        joined[label][quality.FID] = distance
    return joined


def _estimates(held: Folder, rows: Sequence[Row], seed: int) -> dict[str, Estimate]:
    """Of one cell; rows of different seeds have different names."""
    known = {each.name: each for each in figures_of(rows, held.records("oracle", rows))}
    spread = [each for name, each in known.items() if name.startswith(f"{UNTRAINED}/")]
    if spread:
        known[UNTRAINED] = _joined(UNTRAINED, spread)
    if (cosine := quality.clip_t(held, rows)) is not None:
        known[cosine.name] = cosine
    names = {**FIGURES, **{name: name for name in known if name not in FIGURES.values()}}
    return {rate: _of_seed(known[name], rate, seed) for rate, name in names.items() if name in known}


def _of_seed(each: Estimate, rate: str, seed: int) -> Estimate:
    return replace(each, name=rate, rows=[f"{seed}/{row}" for row in each.rows])


def _joined(name: str, each: Sequence[Estimate]) -> Estimate:
    """The pictures of several estimates as one; a prompt that all of them drew is one prompt."""
    strata = [
        stratum
        for one in each
        for stratum in (one.strata if one.strata is not None else [""] * len(one.rows))
    ]
    return replace(
        each[0],
        name=name,
        rows=[row for one in each for row in one.rows],
        values=np.concatenate([one.values for one in each]),
        prompts=[prompt for one in each for prompt in one.prompts],
        strata=strata if any(strata) else None,
    )


def tests(estimates: Mapping[str, Mapping[str, Estimate]], reference: str) -> dict[str, dict[str, Paired]]:
    """Of every other method, each rate of `FIGURES` minus the reference's on the same prompts and noise; none without a reference."""
    against = estimates.get(reference, {})
    return {
        label: {
            rate: paired(against[rate], mine)
            for rate, mine in rates.items()
            if rate in FIGURES and rate in against and set(mine.rows) & set(against[rate].rows)
        }
        for label, rates in estimates.items()
        if label != reference
    }


def correlations(estimates: Mapping[str, Mapping[str, Estimate]]) -> list[Correlation]:
    """Spearman's rank correlation with the published orders, over the models that both have; equal figures share a rank."""
    found = []
    for title, name, key, rate in _ORDERS:
        published = {_ours(model): value for model, value in published_figures(name, key).items()}
        pairs = {
            label: (rates[rate].mean(), published[label])
            for label, rates in estimates.items()
            if label in published and rate in rates
        }
        found.append(Correlation(title, rate, pairs, *_ranked(list(pairs.values()))))
    return found


def _ranked(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    """Spearman's rho and its two-sided p over permutations, all of them of few pairs; None where there is no order."""
    from scipy.stats import permutation_test, rankdata

    if len(pairs) < 3 or any(len(set(values)) < 2 for values in zip(*pairs)):
        return None, None
    measured, published = (rankdata(values) for values in zip(*pairs))
    scale = len(pairs) * measured.std() * published.std()
    rho = float((measured - measured.mean()) @ (published - published.mean()) / scale)
    test = permutation_test(
        (measured,),
        lambda ranks, axis=-1: abs(((ranks - measured.mean()) * (published - published.mean())).sum(axis)),
        permutation_type="pairings",
        vectorized=True,
        alternative="greater",
        random_state=0,
    )
    return rho, float(test.pvalue)


def _ours(model: str) -> str:
    """A published row's model by our name for its method."""
    return _NAMES.get(model, model.lower())
