"""What the people who keep the cluster see of a run: metrics that Ray exports to Prometheus, prefixed `ray_` there."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterable, Sequence

from ray.util.metrics import Counter, Gauge

from sdr1.base.records import GroupReport, UpdateReport, Usage
from sdr1.config.training import Config
from sdr1.training.checkpoint import complete

_EVERY = 1.0
_LOOK_AT_DISK_EVERY = 15.0
"""Seconds: Ray itself reports every ten."""
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sdr1_groups": ("Groups under way, by state; waiting and made are the queues.", ("state",)),
    "sdr1_workers": ("Workers in service.", ("role",)),
    "sdr1_busy_share": ("Share of the last iteration in which a role worked, 0 to 1.", ("role",)),
    "sdr1_images_per_second": ("Images learned from, over the last iteration.", ()),
    "sdr1_staleness": (
        "Updates between the weights that made the latest group and those that learn from it.",
        (),
    ),
    "sdr1_publish_seconds": ("From publishing weights until the latest worker confirmed them.", ()),
    "sdr1_checkpoint_age_seconds": ("Since the newest checkpoint was written.", ()),
}
RECOVERIES = "sdr1_recoveries"


class Meters:
    """Of one run, known by the tag `run`: the name of its folder."""

    def __init__(self, config: Config, states: Iterable[str]) -> None:
        run = {"run": config.run.directory.name}
        self._config, self._states = config, tuple(states)
        self._gauges = {
            name: Gauge(name, description, tag_keys=(*tags, "run"))
            for name, (description, tags) in GAUGES.items()
        }
        self._recoveries = Counter(
            RECOVERIES, "Losses that were made good, by what was lost.", tag_keys=("cause", "run")
        )
        self.learner_losses = 0
        self._groups, self._learner_seconds, self._since = 0, 0.0, time.monotonic()
        for each in (*self._gauges.values(), self._recoveries):
            each.set_default_tags(run)
        self._published = 0.0
        self._lost = Tally[str]()
        self._ticked = self._looked = float("-inf")

    def tick(self, states: Iterable[str], workers: dict[str, int], lost: dict[str, int]) -> None:
        """What is under way now, and what was `lost` so far; may be called as often as one likes."""
        now = time.monotonic()
        if now - self._ticked < _EVERY:
            return
        self._ticked = now
        found = Tally(states)
        for state in self._states:
            self._gauges["sdr1_groups"].set(found[state], {"state": state})
        for role, count in workers.items():
            self._gauges["sdr1_workers"].set(count, {"role": role})
        for cause, count in {**lost, "learner": self.learner_losses}.items():
            if count > self._lost[cause]:
                self._recoveries.inc(count - self._lost[cause], {"cause": cause})
                self._lost[cause] = count
        if now - self._looked > _LOOK_AT_DISK_EVERY:
            self._looked = now
            if saved := complete(self._config.run.directory):
                written = saved[-1].stat().st_mtime
                self._gauges["sdr1_checkpoint_age_seconds"].set(max(0.0, time.time() - written))

    def stepped(self, reports: Sequence[GroupReport], update: UpdateReport) -> None:
        """An optimizer step was made of these groups."""
        self._groups += len(reports)
        self._learner_seconds += update.seconds + sum(report.seconds for report in reports)
        newest = reports[-1].task
        self._gauges["sdr1_staleness"].set(newest.iteration - newest.version)

    def used(self, usage: Usage) -> None:
        """What the workers did since the last call, or since the start."""
        now = time.monotonic()
        seconds = now - self._since
        busy = {
            "rollout": usage.rollout_seconds / usage.rollout_workers,
            "reward": usage.reward_seconds / usage.reward_workers,
            "learner": self._learner_seconds,
        }
        for role, each in busy.items():
            self._gauges["sdr1_busy_share"].set(each / seconds, {"role": role})
        self._gauges["sdr1_images_per_second"].set(self._groups * self._config.rollout.group_size / seconds)
        self._groups, self._learner_seconds, self._since = 0, 0.0, now

    def published(self) -> None:
        self._published = time.monotonic()

    def confirmed(self) -> None:
        self._gauges["sdr1_publish_seconds"].set(time.monotonic() - self._published)
