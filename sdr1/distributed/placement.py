"""Where an actor goes: what it asks of the cluster, and what is said while the cluster does not have it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from sdr1.distributed.actor import Handle

SAY_EVERY = 30.0
"""Seconds between lines about what is missing."""
_log = logging.getLogger("sdr1")


H = TypeVar("H", bound=Handle)


@dataclass(frozen=True)
class Placement(Generic[H]):
    """A kind of actor with its arguments, made anew at every call."""

    handle: Callable[[Any], H]
    """What the driver shall hold of it."""
    role: type
    arguments: tuple[Any, ...]
    cpus: float
    gpus: float

    @classmethod
    def on(
        cls, device: str, cpus: float, handle: Callable[[Any], H], role: type, *arguments: Any
    ) -> Placement[H]:
        """On CPU cores alone, or with one GPU of its own."""
        return cls(handle, role, arguments, cpus, 1 if device.startswith("cuda") else 0)

    def __call__(self, *more: Any) -> H:
        options = ray.remote(self.role).options(num_cpus=self.cpus, num_gpus=self.gpus)
        return self.handle(options.remote(*self.arguments, *more))


def least_cpus() -> float:
    """CPUs to ask for an actor that needs next to none.

    One that asks for 0 may go anywhere, also to a node that offers no CPU because it shall do no work, as a head often
    does. Where there is none of these nothing is asked: it would cost a place for an actor that needs a whole core.
    """
    offered = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return 0 if all(offered) else 0.01


class Waiting:
    """Says, from time to time, what a role needs and what the cluster has, as long as too few are in service."""

    def __init__(self, name: str, place: Placement[Any]) -> None:
        self._name, self._place = name, place
        self._said = time.monotonic()

    def tick(self, in_service: int, wanted: int) -> None:
        now = time.monotonic()
        if in_service >= wanted:
            self._said = now
        elif now - self._said > SAY_EVERY:
            self._said = now
            total, free = ray.cluster_resources(), ray.available_resources()
            needs = {"CPU": self._place.cpus, "GPU": self._place.gpus}
            _log.warning(
                "waiting for %s: %d of %d in service; each needs %s; the cluster has %s, free %s",
                self._name, in_service, wanted, *(_list(each) for each in (needs, total, free)),
            )  # fmt: skip


def _list(resources: dict[str, float]) -> str:
    return " and ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
