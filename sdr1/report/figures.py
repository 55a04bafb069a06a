"""The report's plots, each small enough to be read on a phone, as SVG that follows the page's colours and as files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from .data import Ablated, Evaluation, Figure, Point, Run
from .tables import column_of

# Told apart on white and on black, and by readers who do not see red or green.
_COLOURS = ("#3b7dd8", "#d9662b", "#2a9d72", "#a45fc4", "#b8901c", "#d1477a", "#5a9bb0", "#8a7a66")
_MARKERS = "osD^vPX*"
_INK = "#1b1c1e"
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "svg.fonttype": "none",
    # The same report twice is the same file twice.
    "svg.hashsalt": "sdr1",
    "text.color": _INK,
    # Names are the user's: a dollar sign is a dollar sign.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_SAFETY = ("unsafe_rate", "unsafe_trained", "unsafe_untrained", "unsafe_generic", "inappropriate_rate")
_COUNTS = ("nudity/total",)
_UTILITY = ("utility/overall", "overall", "clip_t", "reward_safe")


@dataclass(frozen=True)
class Plot:
    """`name` is the stem of its files, `title` also its description for who cannot see it."""

    name: str
    title: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The drawing as a part of an HTML page: ink in the colour of its text, no ground."""
        start = self.svg.index("<svg")
        return self.svg[start:].replace(_INK, "currentColor").replace("fill: #ffffff", "fill: none")

    def write(self, folder: Path) -> list[Path]:
        paths = [folder / f"{self.name}.svg", folder / f"{self.name}.png"]
        paths[0].write_text(self.svg, encoding="utf-8")
        paths[1].write_bytes(self.png)
        return paths


class _Draft:
    """What the body of a `_plot` draws into; `plot` is there when it has ended."""

    axes: Axes
    plot: Plot


@contextmanager
def _plot(name: str, title: str, xlabel: str = "", ylabel: str = "", height: float = 3.3) -> Iterator[_Draft]:
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(5.2, height), layout="constrained")
        draft = _Draft()
        draft.axes = canvas.add_subplot(xlabel=xlabel, ylabel=ylabel)
        draft.axes.grid()
        yield draft
        _, labels = draft.axes.get_legend_handles_labels()
        if labels:
            canvas.legend(loc="outside lower center", ncols=2 if len(labels) > 1 else 1, fontsize=9)
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        canvas.savefig(png, format="png", dpi=160)
        draft.plot = Plot(name, title, svg.getvalue(), png.getvalue())


def training(runs: Sequence[Run]) -> list[Plot]:
    """Unsafe rates, counts and utility over the iterations, and utility against the unsafe rate.

    Held-out figures where a run has them (`eval/...`); of the training's own pictures the unsafe rate, and the
    reward on safe prompts where no utility was measured.
    """
    plots = []
    panels = (
        ("safety", "Unsafe pictures over training", "share of pictures", _SAFETY),
        ("counts", "Nudity over training", "pictures with an exposed class", _COUNTS),
        ("utility", "Abilities over training", "figure", _UTILITY),
    )
    for name, title, ylabel, wanted in panels:
        curves = [
            (run.label, key, points)
            for run in runs
            for key in dict.fromkeys(key for row in run.rows for key in row)
            if _is(key, wanted) and (points := _curve(run, "iteration", key))
        ]
        if any(key.startswith("eval/") for _, key, _ in curves) and name == "utility":
            curves = [curve for curve in curves if curve[1].startswith("eval/")]
        if not curves:
            continue
        with _plot(f"training-{name}", title, "iteration", ylabel) as draft:
            for (label, key, points), colour, marker in zip(curves, cycle(_COLOURS), cycle(_MARKERS)):
                held_out = key.startswith("eval/")
                what = column_of(key.removeprefix("eval/")).title if held_out else _TRAINING[key]
                draft.axes.plot(
                    *zip(*points),
                    color=colour,
                    marker=marker if held_out or len(points) == 1 else None,
                    linewidth=1.8 if held_out else 1.0,
                    label=_label(f"{label}: {what}" if len(runs) > 1 else what),
                )
            if name != "utility":
                draft.axes.set_ylim(bottom=0)
        plots.append(draft.plot)
    paths = [(run, points) for run in runs if (points := _plane(run))]
    if paths:
        title = "Utility against unsafe rate, checkpoint by checkpoint"
        with _plot("training-plane", title, "unsafe rate (held out)", "utility (held out)") as draft:
            for (run, points), colour, marker in zip(paths, cycle(_COLOURS), cycle(_MARKERS)):
                xs, ys, iterations = zip(*points)
                draft.axes.plot(xs, ys, color=colour, marker=marker, label=_label(run.label))
                for index in {0, len(points) - 1}:
                    draft.axes.annotate(
                        str(iterations[index]),
                        (xs[index], ys[index]),
                        (5, 5),
                        textcoords="offset points",
                        fontsize=9,
                    )
        plots.append(draft.plot)
    return plots


_TRAINING = {"unsafe_rate": "in training", "reward_safe": "reward on safe prompts, in training"}


def _is(key: str, wanted: Sequence[str]) -> bool:
    if not key.startswith("eval/"):
        return key in _TRAINING and key in wanted
    slashed = f"{key}/"
    return any(f"/{name}/" in slashed for name in wanted) and "/utility/" not in slashed.replace(
        "/utility/overall/", ""
    )


def _curve(run: Run, x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in run.rows if _number(row.get(x)) and _number(row.get(y))]


def _plane(run: Run) -> list[tuple[float, float, int]]:
    """Unsafe rate, utility and iteration wherever a run has both of its first held-out ones."""
    keys = list(dict.fromkeys(key for row in run.rows for key in row if key.startswith("eval/")))
    safety = next((key for key in keys if _is(key, _SAFETY)), None)
    utility = next((key for key in keys if _is(key, _UTILITY)), None)
    return [
        (row[safety], row[utility], row["iteration"])
        for row in run.rows
        if _number(row.get(safety)) and _number(row.get(utility))
    ]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def rates(name: str, title: str, evaluations: Sequence[Evaluation]) -> Plot | None:
    """The rates of a protocol with their intervals, one line a figure, one mark a model."""
    keys = [
        key
        for key in dict.fromkeys(key for each in evaluations for key in each.figures)
        if column_of(key).scale == 100
    ]
    if not keys:
        return None
    with _plot(name, title, "%", height=1.2 + 0.32 * len(keys)) as draft:
        for index, each in enumerate(evaluations):
            offset = (index - (len(evaluations) - 1) / 2) * min(0.22, 0.7 / len(evaluations))
            shown = [(n, each.figures[key]) for n, key in enumerate(keys) if key in each.figures]
            known = [(n + offset, figure) for n, figure in shown if figure.value is not None]
            if not known:
                continue
            values = [100 * figure.value for _, figure in known if figure.value is not None]
            draft.axes.errorbar(
                values,
                [y for y, _ in known],
                xerr=list(zip(*(_reach(figure) for _, figure in known))),
                fmt=_MARKERS[index % len(_MARKERS)],
                color=_COLOURS[index % len(_COLOURS)],
                markersize=5,
                linewidth=1.4,
                label=_label(each.label),
            )
        draft.axes.set_yticks(range(len(keys)), [_label(column_of(key).title) for key in keys])
        draft.axes.set_ylim(len(keys) - 0.5, -0.5)
        draft.axes.set_xlim(-2, 102)
    return draft.plot


def _reach(figure: Figure) -> tuple[float, float]:
    """How far the interval reaches below and above the value, in percent."""
    value = figure.value or 0.0
    low, high = (value if bound is None else bound for bound in (figure.low, figure.high))
    return max(0.0, 100 * (value - low)), max(0.0, 100 * (high - value))


def ablation(entries: Sequence[Ablated]) -> Plot:
    """Utility against the trained concept's unsafe rate, a dot for each seed of each reward."""
    title = "Reward ablation: utility against unsafe rate, one dot a seed"
    with _plot("ablation", title, "unsafe, trained concept, %", "utility, %") as draft:
        for entry, colour, marker in zip(entries, cycle(_COLOURS), cycle(_MARKERS)):
            draft.axes.scatter(
                _percent(entry.unsafe_trained),
                _percent(entry.utility),
                color=colour,
                marker=marker,
                label=_label(entry.name),
            )
    return draft.plot


def alpha_sweep(entries: Sequence[Ablated]) -> Plot:
    """Mean over seeds of the three rates at each alpha, with a dot for each seed."""
    known = sorted(
        (entry for entry in entries if entry.alpha is not None), key=lambda entry: entry.alpha or 0
    )
    with _plot("alpha-sweep", "Alpha sweep: rates after training", "alpha", "%") as draft:
        for n, (key, label) in enumerate(
            (
                ("unsafe_trained", "unsafe, trained concept"),
                ("unsafe_untrained", "unsafe, other concepts"),
                ("utility", "utility"),
            )
        ):
            alphas = [entry.alpha for entry in known]
            seeds = [_percent(getattr(entry, key)) for entry in known]
            draft.axes.plot(
                alphas, [fmean(each) for each in seeds], color=_COLOURS[n], marker=_MARKERS[n], label=label
            )
            for alpha, each in zip(alphas, seeds):
                draft.axes.scatter([alpha] * len(each), each, color=_COLOURS[n], s=8, alpha=0.6)
    return draft.plot


def points(name: str, title: str, where: Sequence[Point]) -> Plot:
    """The map of the prompts' embeddings, coloured by group."""
    with _plot(name, title, height=4.2) as draft:
        groups = dict.fromkeys(point.group for point in where)
        for group, colour, marker in zip(groups, cycle(_COLOURS), cycle(_MARKERS)):
            mine = [point for point in where if point.group == group]
            draft.axes.scatter(
                [point.x for point in mine],
                [point.y for point in mine],
                s=16,
                alpha=0.75,
                color=colour,
                marker=marker,
                label=_label(group),
            )
        # Only distances mean something here.
        draft.axes.set_xticks([])
        draft.axes.set_yticks([])
    return draft.plot


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _label(text: str) -> str:
    """A short text that matplotlib shows: it leaves out labels that start with an underscore."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    clean = clean if len(clean) <= 48 else f"{clean[:30]} ... {clean[-13:]}"
    return f" {clean}" if clean.startswith("_") else clean
