"""Whether a run measures the metrics that its config names."""

from __future__ import annotations

import difflib

from sdr1.base.errors import UserError
from sdr1.config.training import Config
from sdr1.training import metrics


def check(config: Config) -> None:
    """Raise UserError when the config names a metric that no row of this run's record has."""
    known = metrics.names(config)
    if config.evaluation.every:
        from sdr1.training.observers import evaluator

        known |= evaluator.names()
    for field, name in config.named_metrics:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)
            raise UserError(f"{field}: {name!r}: this run has no such metric; use e.g. {', '.join(near)}")
