"""What a run's metrics are called in MLflow, whose page has a section for each group, in the order of their names."""

from __future__ import annotations

from collections.abc import Mapping

from sdr1.training.objectives.objective import RATIO_GAP

_GROUPS = (
    (
        "4_speed",
        (
            "images_per_second",
            "unet_evaluations",
            "rollout_workers",
            "rollout_busy",
            "reward_busy",
            "learner_busy",
        ),
    ),
    ("1_safety", ("unsafe_rate", "eval/unsafe_", "eval/false_alarm", "eval/over_refusal")),
    ("2_reward", ("reward_",)),
    ("3_utility", ("eval/utility/", "eval/shape_kept", "eval/coherent_")),
)
"""The first one counts whose names begin so; what matters first has the smallest number."""
_HEALTH = "5_health"
"""Of all others: whether training goes well, not what it leads to."""


def tracked(row: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a row of `metrics.jsonl` under `GROUP/NAME`, in that order, which a run's page shows them in too;
    slashes in their names become underscores.

    The ratio gap is one figure, the largest of its steps; a step has its own only where it is not 0.
    """
    gaps = {name: value for name, value in row.items() if name.startswith(RATIO_GAP)}
    shown = {
        name: value
        for name, value in row.items()
        if name not in ("iteration", "time") and gaps.get(name) != 0
    }
    if gaps:
        shown[RATIO_GAP.removesuffix("/")] = max(gaps.values())
    return dict(sorted((named(name), value) for name, value in shown.items()))


def named(metric: str) -> str:
    """What a metric of `metrics.jsonl` is called in MLflow."""
    group = next((group for group, starts in _GROUPS if metric.startswith(starts)), _HEALTH)
    return f"{group}/{metric.replace('/', '_')}"
