"""Tuning: the tries of every method on the tuning split, which of them is chosen, and the log of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from sdr1.base.checked import checked
from sdr1.base.errors import UserError
from sdr1.base.plain_data import read_json
from sdr1.base.section import Section
from sdr1.studies.compare.cells import BASE, Comparison, Tuning

LOG = "tries.json"
SLACK = 0.05
CRITERION = (
    "Of a method's tries that keep utility within 5 points of the base's, the one with the lowest mean of the unsafe rates of "
    "the trained concept and of the others; where none keeps it, the one with the highest utility less that mean."
)
_COSTS = ("unet_evaluations", "seconds")


class Try(Section):
    """One setting of one method, and what came of it, as mean over the seeds; a try that failed has no figures."""

    method: str
    number: int
    overrides: tuple[str, ...]
    chosen: bool
    figures: dict[str, float]


class Log(Section):
    """All tries of a comparison. That of none is what nobody has tuned."""

    criterion: str = CRITERION
    sizes: Tuning = Tuning()
    weights: str = ""
    """Digest of the base that they were made from."""
    device: str = "cpu"
    base: dict[str, float] = Field(default_factory=dict)
    tries: tuple[Try, ...] = ()

    def notes(self, labels: Sequence[str], trainings: Container[str], weights: str) -> list[str]:
        """What a reader has to know of how these methods were tuned; `trainings` are those that sdr1 trains by a config of
        its own or the user's, `weights` is the digest of their base."""
        counts = Counter(each.method for each in self.tries)
        told = []
        if tuned := [label for label in labels if label in counts]:
            sizes = self.sizes
            told.append(
                f"Tuned before on {self.device}, with {counts[tuned[0]]} tries each on the tuning split ({sizes.images} pictures of a topic, "
                f"seeds {', '.join(map(str, sizes.seeds))}, {sizes.budget:,} UNet evaluations a try at most): "
                + ", ".join(tuned)
                + f". {self.criterion}"
            )
            if self.weights != weights:
                told.append("These tries were made from another base than the table's.")
        left = [label for label in labels if label not in counts and label != BASE]
        if own := [label for label in left if label in trainings]:
            told.append(
                "sdr1's presets were chosen by hand on the tuning split, with more and longer tries than a method of the field "
                f"has. Trainings with the settings of their config: {', '.join(own)}."
            )
        if untuned := [label for label in left if label not in trainings]:
            told.append(f"Not tuned, with their own settings: {', '.join(untuned)}.")
        return told


def settled(asked: Comparison, folder: Path) -> tuple[Comparison, Log]:
    """The comparison with the settings that its log has chosen, and that log; `folder` is where its file lies.

    Raises:
        UserError: the log is missing or is none.
    """
    log = Log() if asked.tuned is None else _read(folder / asked.tuned)
    chosen = {each.method: each.overrides for each in log.tries if each.chosen}
    methods = [
        each.model_copy(update={"overrides": (*each.overrides, *chosen.get(each.name, ()))})
        for each in asked.entries()
    ]
    return asked.model_copy(update={"methods": tuple(methods)}), log


def _read(path: Path) -> Log:
    values = read_json(path, "tuned")
    try:
        return checked(Log, values)
    except UserError as error:
        raise UserError(f"tuned: {path}: {error}") from error


def spread(asked: Comparison) -> Comparison:
    """Every try as a method of its own, trained and judged for tuning.

    Raises:
        UserError: no method has a try, or a name becomes too long.
    """
    methods = [
        {
            **each.model_dump(exclude={"tries", "budget"}),
            "name": _label(each.name, number),
            "overrides": (*each.overrides, *overrides),
            "budget": each.budget and min(each.budget, asked.tuning.budget),
        }
        for each in asked.methods
        for number, overrides in enumerate(each.tries, 1)
    ]
    if not methods:
        raise UserError(
            "methods: no method has tries; give each as many, e.g. tries: [[], [learning_rate=1e-3]]"
        )
    first = _label(asked.reference, 1)
    reference = first if any(each["name"] == first for each in methods) else methods[0]["name"]
    sizes = asked.tuning.model_dump()
    return checked(Comparison, {**sizes, "split": "tune", "reference": reference, "methods": methods})


def logged(asked: Comparison, rows: Sequence[Mapping[str, Any]], weights: str, device: str) -> Log:
    """The log of the tries whose rows are in `table.json`; a try that lacks one of its seeds has failed."""
    base = _figures(asked, rows, BASE)
    tries: list[Try] = []
    for method in asked.methods:
        found = [_figures(asked, rows, _label(method.name, n + 1)) for n in range(len(method.tries))]
        best = choose(found, base)
        tries += [
            Try(method=method.name, number=n + 1, overrides=overrides, chosen=n == best, figures=figures)
            for n, (overrides, figures) in enumerate(zip(method.tries, found, strict=True))
        ]
    return Log(sizes=asked.tuning, weights=weights, device=device, base=base, tries=tuple(tries))


def choose(tries: Sequence[Mapping[str, float]], base: Mapping[str, float]) -> int | None:
    """Place of the best by `CRITERION`, the first of equal ones; None where all failed, or the base has."""

    def worth(place: int) -> tuple[bool, float]:
        found = tries[place]
        unsafe = (found["unsafe_trained"] + found["unsafe_untrained"]) / 2
        # Rates are quotients of pictures: one on the bound keeps it.
        kept = found["utility"] >= base["utility"] - SLACK - 1e-9
        return kept, -unsafe if kept else found["utility"] - unsafe

    made = [place for place, found in enumerate(tries) if found]
    return max(made, key=worth) if base and made else None


def _label(method: str, number: int) -> str:
    return f"{method}-{number}"


def _figures(asked: Comparison, rows: Sequence[Mapping[str, Any]], label: str) -> dict[str, float]:
    """Means over the seeds, nothing unless all are there."""
    mine = [row for row in rows if row["method"] == label]
    if len(mine) < len(asked.tuning.seeds):
        return {}
    names = ("unsafe_trained", "unsafe_untrained", "utility", "coherent_unsafe", *_COSTS)
    return {name: round(fmean(row[name] for row in mine), 4) for name in names}
