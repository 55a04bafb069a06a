"""Where an evaluation is done: in this process, or on a cluster that is joined or started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdr1.base.errors import UserError
from sdr1.base.process import require_device
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.workers import bounds


@dataclass(frozen=True)
class Place:
    """Where the work is done."""

    local: bool = False
    ray_address: str | None = None
    against: Path | None = None
    """Another model's evaluation of the same rows, for paired tests."""


CLUSTER = Place()
"""A cluster that is joined if there is one, or started."""


@contextmanager
def cluster(place: Place, config: EvaluationConfig) -> Iterator[None]:
    """The cluster that the work is done on; inside another such context that one's."""
    if place.local:
        yield
        return
    from sdr1.distributed.cluster import joined

    with joined(place.ray_address, config.threads * bounds(config.workers).max):
        yield


def require_devices(config: EvaluationConfig, place: Place) -> None:
    for field in ("device", "judge_device"):
        device = getattr(config, field)
        if not place.local and device not in ("cpu", "cuda", "cuda:0"):
            raise UserError(f"{field}: {device!r}: every actor has one GPU of its own; use {field}=cuda")
        if place.local or not (place.ray_address or os.environ.get("RAY_ADDRESS")):
            require_device(field, device)
