"""Warns when what training should leave alone drifts: the size of predictions, colours, and the reward's sense."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import fmean

from sdr1.base.records import GroupTask
from sdr1.training.loop import Executor
from sdr1.training.observers.journal import Journal

SPAN = 5
"""Values of a metric that are averaged; the first so many are what colours are compared with."""
NORM, COLOUR = 0.1, 0.1
"""How far predictions may be from the base's length, and colours from where they were, before it is said."""
_log = logging.getLogger("sdr1")


class Drift:
    """Observer; it reads the record, so that a resumed run is compared with its beginning. Each metric is told once."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._told: set[str] = set()

    def accumulated(self, task: GroupTask) -> None:
        pass

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        for name, found in self.drifted(iteration + 1).items():
            if name not in self._told:
                self._told.add(name)
                _log.warning("iteration %d: %s: %s", iteration, name, found)

    def drifted(self, done: int) -> dict[str, str]:
        """Metrics that have drifted after so many iterations, and what is said of them."""
        found: dict[str, str] = {}
        for name in ("prediction_norm", "brightness", "saturation", "monitor_gap"):
            values = [row[name] for row in self._journal.rows[:done] if name in row]
            if len(values) < SPAN:
                continue
            first, now = fmean(values[:SPAN]), fmean(values[-SPAN:])
            if name == "prediction_norm" and abs(now - 1) > NORM:
                found[name] = (
                    f"predictions are {now:.2f} x as long as the base model's; pictures break next: {_CURE}"
                )
            elif name in ("brightness", "saturation") and abs(now - first) > COLOUR:
                found[name] = f"pictures of safe prompts went from {first:.2f} to {now:.2f}: {_CURE}"
            elif name == "monitor_gap" and now < 0:
                found[name] = (
                    f"the reward prefers by {-now:.2g} what the monitor flags: look at the pictures, and at reward.alpha and "
                    "reward.anchors"
                )
        return found


_CURE = "lower learner.learning_rate, or raise learner.kl_weight"
