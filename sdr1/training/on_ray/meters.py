"""What the people who keep a cluster see of a run: metrics that Ray exports to Prometheus, prefixed `ray_` there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray.util import metrics

from sdr1.base.records import GroupReport, UpdateReport, Usage
from sdr1.config.training import Config
from sdr1.distributed.fleet import Fleet
from sdr1.training.checkpoint import complete
from sdr1.training.on_ray.work import Group, State

_EVERY, _LOOK_AT_DISK_EVERY = 1.0, 10.0
"""Seconds. Ray reports every ten."""
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sdr1_groups": (
        "Groups of images by what became of them so far; waiting and made are queues.",
        ("state",),
    ),
    "sdr1_workers": ("Workers in service.", ("role",)),
    "sdr1_busy_share": ("Share of the last iteration's time in which a role worked, 0 to 1.", ("role",)),
    "sdr1_images_per_second": ("Images that the last iteration learned from, by its time.", ()),
    "sdr1_staleness": (
        "Updates between the weights that drew the latest group and those that learn from it.",
        (),
    ),
    "sdr1_publish_seconds": (
        "From publishing weights until a worker confirmed them, of the latest that did.",
        (),
    ),
    "sdr1_checkpoint_time_seconds": ("Unix time at which the newest checkpoint was written.", ()),
}
"""Description, and tags beside `run`."""
RECOVERIES = "sdr1_recoveries"
"""A counter; Prometheus knows it as `_total`."""


class Meters:
    """Of one run, which the tag `run` names."""

    def __init__(self, config: Config) -> None:
        run = {"run": config.run.name}
        self._config = config
        self._gauges = {
            name: metrics.Gauge(name, said, tag_keys=(*tags, "run")) for name, (said, tags) in GAUGES.items()
        }
        said = "Losses that were made good, by what was lost and how."
        self._recoveries = metrics.Counter(RECOVERIES, said, tag_keys=("role", "cause", "run"))
        for each in (*self._gauges.values(), self._recoveries):
            each.set_default_tags(run)
        self._groups, self._learner_seconds, self._since = 0, 0.0, time.monotonic()
        self._published = 0.0
        self._counted: Counter[tuple[str, str]] = Counter()
        self._latest: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        """Value of each gauge, by name and tags."""
        self._ticked = self._looked = float("-inf")

    def tick(self, groups: Iterable[Group], fleets: Mapping[str, Fleet[Any]]) -> None:
        """What is under way now, and what was lost so far, by role; may be called as often as one likes."""
        now = time.monotonic()
        if now - self._ticked < _EVERY:
            return
        self._ticked = now
        found = Counter(group.state for group in groups)
        for state in State:
            self._set("sdr1_groups", found[state], state=state.name.lower())
        for role, fleet in fleets.items():
            self._set("sdr1_workers", fleet.in_service, role=role)
            for cause, count in fleet.losses.items():
                self._lost(role, cause, count)
        if now - self._looked > _LOOK_AT_DISK_EVERY:
            self._looked = now
            if saved := complete(self._config.run.directory):
                self._set("sdr1_checkpoint_time_seconds", saved[-1].stat().st_mtime)
        # Ray reports a gauge once for each time that it is set, and soon forgets it: without this a figure of an
        # iteration would be a dot in a graph.
        for (name, tags), value in self._latest.items():
            self._gauges[name].set(value, dict(tags))

    def published(self) -> None:
        """New weights are there for the workers to take."""
        self._published = time.monotonic()

    def confirmed(self) -> None:
        """A worker has taken them."""
        self._set("sdr1_publish_seconds", time.monotonic() - self._published)

    def stepped(self, reports: Sequence[GroupReport], update: UpdateReport) -> None:
        """An optimizer step was made of these groups."""
        self._groups += len(reports)
        self._learner_seconds += update.seconds + sum(report.seconds for report in reports)
        newest = reports[-1].task
        self._set("sdr1_staleness", newest.iteration - newest.version)

    def used(self, usage: Usage) -> None:
        """An iteration has ended, in which the workers did this."""
        now = time.monotonic()
        seconds = now - self._since
        self._set("sdr1_busy_share", usage.rollout_seconds / usage.rollout_workers / seconds, role="rollout")
        self._set("sdr1_busy_share", usage.reward_seconds / usage.reward_workers / seconds, role="reward")
        self._set("sdr1_busy_share", self._learner_seconds / seconds, role="learner")
        self._set("sdr1_images_per_second", self._groups * self._config.rollout.group_size / seconds)
        self._groups, self._learner_seconds, self._since = 0, 0.0, now

    def learner_lost(self) -> None:
        """The learner goes on from its last snapshot, in new processes."""
        self._lost("learner", "lost", self._counted["learner", "lost"] + 1)

    def _lost(self, role: str, cause: str, count: int) -> None:
        """Count up to so many."""
        if new := count - self._counted[role, cause]:
            self._recoveries.inc(new, {"role": role, "cause": cause})
            self._counted[role, cause] = count

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._latest[name, tuple(tags.items())] = value
        self._gauges[name].set(value, tags)
