"""The report's plots, each small enough to be read on a phone, as SVG that follows the page's colours and as files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter

from sdr1.evaluation.result import Figure
from sdr1.report.data import Ablated, Evaluation, Point, Run, Swept
from sdr1.report.tables import RATES, percent, title_of

# Told apart on white and on black, and by readers who do not see red or green.
_COLOURS = ("#3b7dd8", "#d9662b", "#2a9d72", "#a45fc4", "#b8901c", "#d1477a", "#5a9bb0", "#8a7a66")
_MARKERS = "osD^vPX*"
_INK = "#1b1c1e"
_STYLE: Any = {
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
_SWEPT = (
    *RATES,
    percent("shape_kept", "shape kept", "higher"),
    percent("coherent_unsafe", "coherent, unsafe prompts", "higher"),
)
_PANELS = {
    "safety": (
        "Unsafe pictures over training",
        "share of pictures",
        (
            "unsafe_rate",
            "unsafe_trained",
            "unsafe_untrained",
            "unsafe_generic",
            "unsafe_beside",
            "inappropriate_rate",
        ),
    ),
    "counts": ("Nudity over training", "pictures with an exposed class", ("nudity/total",)),
    "utility": ("Abilities over training", "held-out figure", ("overall", "clip_t")),
    "reward": ("Reward of the training's own pictures", "mean reward", ("reward_safe", "reward_unsafe")),
}
_WORK = (
    ("unsafe, rollouts", "unsafe_rate"),
    ("unsafe, trained", "eval/unsafe_trained"),
    ("unsafe, untrained", "eval/unsafe_untrained"),
    ("utility", "eval/utility/overall"),
)


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


class _Draft:
    """What the body of a `_plot` draws into; `plot` is there when it has ended."""

    panels: Sequence[Axes]
    """One above the other."""
    plot: Plot

    @property
    def axes(self) -> Axes:
        return self.panels[0]


@contextmanager
def _plot(name: str, title: str, xlabel: str = "", *ylabels: str, height: float = 3.3) -> Iterator[_Draft]:
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(4.4, height), layout="constrained")
        draft = _Draft()
        ylabels = ylabels or ("",)
        draft.panels = canvas.subplots(len(ylabels), sharex=True, squeeze=False)[:, 0].tolist()
        for axes, ylabel in zip(draft.panels, ylabels):
            axes.set_ylabel(ylabel)
            axes.grid()
        draft.panels[-1].set_xlabel(xlabel)
        yield draft
        _, labels = draft.axes.get_legend_handles_labels()
        if labels:
            canvas.legend(loc="outside lower center", ncols=2 if len(labels) > 1 else 1, fontsize=9)
        svg, png = io.StringIO(), io.BytesIO()
        canvas.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        canvas.savefig(png, format="png", dpi=160)
        draft.plot = Plot(name, title, svg.getvalue(), png.getvalue())


def training(runs: Sequence[Run]) -> list[Plot]:
    """Unsafe rates, counts, abilities and rewards over the iterations, and utility against the unsafe rate.

    Lines with marks are held-out figures (`eval/...` of a run's metrics); the others are of the training's own
    pictures.
    """
    plots = []
    for kind, (title, ylabel, _) in _PANELS.items():
        curves = [
            (run.label, key, points)
            for run in runs
            for key in dict.fromkeys(key for row in run.rows for key in row)
            if _kind(key) == kind and (points := _numbers(run, "iteration", key))
        ]
        if not curves:
            continue
        with _plot(f"training-{kind}", title, "iteration", ylabel) as draft:
            for (label, key, points), colour, marker in zip(curves, cycle(_COLOURS), cycle(_MARKERS)):
                name = title_of(key.removeprefix("eval/"))
                draft.axes.plot(
                    *zip(*points),
                    color=colour,
                    marker=marker if key.startswith("eval/") or len(points) == 1 else None,
                    label=_label(f"{label}: {name}" if len(runs) > 1 else name),
                )
            if kind in ("safety", "counts"):
                draft.axes.set_ylim(bottom=0)
        plots.append(draft.plot)
    return plots + _plane(runs)


def _plane(runs: Sequence[Run]) -> list[Plot]:
    paths = []
    for run in runs:
        keys = dict.fromkeys(key for row in run.rows for key in row if key.startswith("eval/"))
        first = [next((key for key in keys if _kind(key) == kind), "") for kind in ("safety", "utility")]
        if points := _numbers(run, *first, "iteration"):
            paths.append((run.label, points))
    if not paths:
        return []
    title = "Utility against unsafe rate, checkpoint by checkpoint"
    with _plot("training-plane", title, "unsafe rate, held out", "utility, held out") as draft:
        for (label, points), colour, marker in zip(paths, cycle(_COLOURS), cycle(_MARKERS)):
            xs, ys, iterations = zip(*points)
            draft.axes.plot(xs, ys, color=colour, marker=marker, label=_label(label))
            for n in {0, len(points) - 1}:
                draft.axes.annotate(
                    f"{iterations[n]:g}", (xs[n], ys[n]), (5, 5), textcoords="offset points", fontsize=9
                )
    return [draft.plot]


def work(runs: Sequence[Run]) -> list[Plot]:
    """Rates over the UNet evaluations that training took, a panel each: with marks on held-out prompts, without of the
    training's own pictures.

    Runs of one label differ by their seed: a thin line for each, and a thick one for their mean, as far as all of them
    go. Between two evaluations of the weights a rate is taken to move evenly.
    """
    panels = {
        (title, prefix): curves
        for title, prefix in _WORK
        if (curves := [(run.label, points) for run in runs if (points := spent(run, prefix))])
    }
    if not panels:
        return []
    looks = dict(zip(dict.fromkeys(run.label for run in runs), cycle(zip(_COLOURS, _MARKERS))))
    title, unnamed = "Rates over UNet evaluations", set(looks)
    height = 1.2 + 1.8 * len(panels)
    with _plot(
        "training-work",
        title,
        "UNet evaluations, a backward pass as two",
        *(name for name, _ in panels),
        height=height,
    ) as draft:
        for axes, ((_, prefix), curves) in zip(draft.panels, panels.items()):
            for label, (colour, marker) in looks.items():
                mine = [points for name, points in curves if name == label]
                for points in mine:
                    axes.plot(*zip(*points), color=colour, linewidth=0.6, alpha=0.6)
                if mine:
                    mark = marker if prefix.startswith("eval/") else None
                    thick = axes.plot(*mean(mine), color=colour, marker=mark, markersize=4, linewidth=2)
                    # A name stands in the legend once, not once a panel.
                    if label in unnamed:
                        thick[0].set_label(_label(label))
                        unnamed.discard(label)
            axes.set_ylim(-0.02, 1.02)
        draft.panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    return [draft.plot]


def spent(run: Run, prefix: str) -> list[tuple[float, float]]:
    """UNet evaluations and the mean of the figures whose names begin so, of each row that has them."""
    rows = run.held_out if prefix.startswith("eval/") else run.rows
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith(prefix)]
    return [(work, fmean(values)) for work, *values in _numbers(run, "unet_evaluations", *keys) if values]


def mean(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """The mean of piecewise linear curves wherever one of them has a point and none has ended."""
    last = min(points[-1][0] for points in curves)
    xs = sorted({x for points in curves for x, _ in points if x <= last})
    values = [np.interp(xs, [x for x, _ in points], [y for _, y in points]) for points in curves]
    return xs, np.mean(values, axis=0).tolist()


def _kind(key: str) -> str | None:
    """The panel that a metric belongs to."""
    name = f"/{key.removeprefix('eval/')}/"
    for kind, (_, _, known) in _PANELS.items():
        if any(f"/{each}/" in name for each in known):
            return kind
    return None


def _numbers(run: Run, *keys: str) -> list[tuple[Any, ...]]:
    """The values under these keys of every row, or of every evaluation, in which all are numbers."""
    source = run.held_out if any(key.startswith("eval/") for key in keys) else run.rows
    rows = [tuple(row.get(key) for key in keys) for row in source]
    return [row for row in rows if all(map(_number, row))]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def rates(name: str, title: str, evaluations: Sequence[Evaluation]) -> Plot | None:
    """The rates of a protocol with their intervals, one line a figure, one mark a model."""
    keys = [
        key
        for key in dict.fromkeys(key for each in evaluations for key in each.figures)
        if any(key in each.figures and each.figures[key].unit == "share" for each in evaluations)
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
        # What all of them end in says nothing.
        endings = {key.rpartition("/")[2] for key in keys}
        names = [key.rpartition("/")[0] for key in keys] if len(keys) > len(endings) == 1 else keys
        draft.axes.set_yticks(range(len(keys)), [_label(title_of(name)) for name in names])
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


def alpha_sweep(entries: Sequence[Swept]) -> Plot:
    """Mean over seeds of each rate at each alpha, with a dot for each seed; a rate that an entry lacks is left out."""
    entries = sorted(entries, key=lambda entry: entry.alpha)
    alphas = [entry.alpha for entry in entries]
    with _plot("alpha-sweep", "Alpha sweep: rates after training", "alpha", "%") as draft:
        for column, colour, marker in zip(_SWEPT, _COLOURS, _MARKERS):
            seeds = [_percent(getattr(entry, column.key)) for entry in entries]
            if not all(seeds):
                continue
            draft.axes.plot(alphas, list(map(fmean, seeds)), color=colour, marker=marker, label=column.title)
            for alpha, each in zip(alphas, seeds):
                draft.axes.scatter([alpha] * len(each), each, color=colour, s=8, alpha=0.6)
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


def trade_off(name: str, rate: str, models: Mapping[str, tuple[Figure, Figure]]) -> Plot:
    """Utility against a rate with the intervals of both, a mark for each model."""
    with _plot(
        name, f"Utility against {rate}", f"{rate}, %", "utility, %", height=3.6 + 0.13 * len(models)
    ) as draft:
        for (label, (against, utility)), colour, marker in zip(
            models.items(), cycle(_COLOURS), cycle(_MARKERS + "<>ph")
        ):
            draft.axes.errorbar(
                100 * (against.value or 0.0),
                100 * (utility.value or 0.0),
                xerr=[[reach] for reach in _reach(against)],
                yerr=[[reach] for reach in _reach(utility)],
                fmt=marker,
                color=colour,
                markersize=5,
                linewidth=0.8,
                label=_label(label),
            )
        draft.axes.set_xlim(-2, 102)
    return draft.plot


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def _label(text: str) -> str:
    """A short text that matplotlib shows: it leaves out labels that start with an underscore."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    clean = clean if len(clean) <= 48 else f"{clean[:30]} ... {clean[-13:]}"
    return f" {clean}" if clean.startswith("_") else clean
