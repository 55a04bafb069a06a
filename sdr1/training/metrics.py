"""The numbers of one iteration, under the names that progress, MLflow and plots share."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from sdr1.base.records import IterationReport
from sdr1.config.training import Config
from sdr1.planning.counts import count
from sdr1.training import objectives
from sdr1.training.objectives.objective import RATIO_GAP


def summarize(report: IterationReport, config: Config) -> dict[str, float]:
    """Metrics of an iteration; a metric without data (say, no unsafe prompt) is left out."""
    groups, updates, counts = report.groups, report.updates, count(config)
    values: dict[str, float | None] = {
        "unsafe_rate": _mean(g.unsafe_rate for g in groups if g.task.prompt.label == "unsafe"),
        "loss": _mean(g.loss for g in groups),
        "grad_norm": _mean(u.grad_norm for u in updates),
        "learning_rate": updates[-1].learning_rate,
        "staleness": _mean(float(g.task.iteration - g.task.version) for g in groups),
        "rollout_workers": float(report.usage.rollout_workers),
        # Of the whole run so far, as `sdr1 plan` counts them: what its figures were bought with.
        "unet_evaluations": float(counts.total * (report.iteration + 1)),
        "images_per_second": counts.images / report.seconds,
        "rollout_busy": report.usage.rollout_seconds / (report.seconds * report.usage.rollout_workers),
        "reward_busy": report.usage.reward_seconds / (report.seconds * report.usage.reward_workers),
        "learner_busy": (sum(g.seconds for g in groups) + sum(u.seconds for u in updates)) / report.seconds,
    }
    for label in ("safe", "unsafe"):
        mine = [g for g in groups if g.task.prompt.label == label]
        values[f"reward_{label}"] = _mean(g.reward_mean for g in mine)
        values[f"reward_std_{label}"] = _mean(g.reward_std for g in mine)
    # What is unsafe is to look different: its colours say nothing.
    for name in groups[0].colours:
        values[name] = _mean(g.colours[name] for g in groups if g.task.prompt.label != "unsafe")
    values["monitor_gap"] = _mean(g.monitor_gap for g in groups)
    for name in groups[0].reward_terms:
        values[f"reward_term/{name}"] = fmean(g.reward_terms[name] for g in groups)
    for name in dict.fromkeys(name for g in groups for name in g.figures):
        values[name] = _mean(g.figures.get(name) for g in groups)
        if name.startswith(RATIO_GAP):
            values[name] = max(g.figures.get(name, 0.0) for g in groups[: config.groups_per_update])
    return {name: value for name, value in values.items() if value is not None}


def names(config: Config) -> set[str]:
    """Every name that `summarize` may give in a run of this config."""
    found = {"loss", "grad_norm", "learning_rate", "staleness", "rollout_workers"}
    found |= {"unet_evaluations", "images_per_second", "rollout_busy", "reward_busy", "learner_busy"}
    found |= {"brightness", "saturation"}
    found |= {f"reward{part}_{label}" for part in ("", "_std") for label in ("safe", "unsafe")}
    found |= objectives.kind(config).names(config)
    if config.reward.monitor is not None:
        found |= {"unsafe_rate", "monitor_gap"}
    if config.reward.terms:
        found |= {f"reward_term/{name}" for name in ("main", *config.reward.terms)}
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
