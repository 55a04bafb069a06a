"""When a rule of `stop.when` ends a run, read off its record: so it holds after a resume as it did before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdr1.config.training import StopConfig, StopRule


def rule_met(stop: StopConfig, rows: Sequence[Mapping[str, float]]) -> StopRule | None:
    """The first rule that holds at the last of these rows of `metrics.jsonl`."""
    return next((rule for rule in stop.when if _holds(rule, rows)), None)


def _holds(rule: StopRule, rows: Sequence[Mapping[str, float]]) -> bool:
    # Of evaluations one value may come in ten iterations: a rule ends a run when its metric is news, not later.
    if not rows or rule.metric not in rows[-1]:
        return False
    values = [row[rule.metric] for row in rows if rule.metric in row][-rule.iterations :]
    return len(values) == rule.iterations and all(_beyond(rule, value) for value in values)


def _beyond(rule: StopRule, value: float) -> bool:
    return value > rule.above if rule.above is not None else rule.below is not None and value < rule.below
