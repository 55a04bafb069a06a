"""A process on every node of a cluster, to be asked things."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sdr1.base.errors import UserError
from sdr1.distributed.calls import first_line


class Visitor:
    """An actor that calls what it is given."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@dataclass(frozen=True)
class Node:
    """A node that lives, and the visitor there."""

    name: str
    """Its address, with a part of its id where several share one."""
    resources: dict[str, float]
    is_drivers: bool
    """Whether the driver is on it: they share the object store."""
    visitor: Any


@contextmanager
def visited() -> Iterator[list[Node]]:
    """The nodes of the joined cluster; the visitors leave with the block. They take no CPU and no GPU."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    here = ray.get_runtime_context().get_node_id()
    found = []
    for node, address in zip(alive, addresses, strict=True):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        visitor = ray.remote(Visitor).options(num_cpus=0, scheduling_strategy=there).remote()
        name = address if addresses.count(address) == 1 else f"{address}/{node['NodeID'][:6]}"
        found.append(Node(name, node["Resources"], node["NodeID"] == here, visitor))
    try:
        yield found
    finally:
        for node in found:
            ray.kill(node.visitor)


def ask(nodes: list[Node], function: Callable[..., Any], *arguments: Any, timeout: float) -> dict[str, Any]:
    """What a function answers on each node, all asked at once; the error where it raised, or did not answer in time."""
    refs = {node.name: node.visitor.call.remote(function, *arguments) for node in nodes}
    end = time.monotonic() + timeout
    answers: dict[str, Any] = {}
    for name, ref in refs.items():
        try:
            answers[name] = ray.get(ref, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            answers[name] = TimeoutError(f"no answer for {timeout:.0f} s")
        except ray.exceptions.RayTaskError as error:
            answers[name] = error.cause if isinstance(error.cause, Exception) else error
        except ray.exceptions.RayError as error:
            answers[name] = RuntimeError(first_line(error))
    return answers


def clock_offset(node: Node, timeout: float) -> float:
    """Seconds by which a node's clock is ahead of the driver's, as far as the way there and back can tell; 0 within it.

    Raises:
        UserError: it does not answer any more.
    """
    best = (float("inf"), 0.0)
    for _ in range(5):
        begin = time.time()
        try:
            there = ray.get(node.visitor.call.remote(_clock), timeout=timeout)
        except ray.exceptions.RayError as error:
            raise UserError(
                f"node {node.name}: stopped answering ({first_line(error)}); restart it, or take it out"
            ) from error
        end = time.time()
        best = min(best, (end - begin, there - (begin + end) / 2))
    way, offset = best
    return 0.0 if abs(offset) <= way / 2 else offset


def _clock() -> float:
    return time.time()


def pull_seconds(nodes: list[Node], size: int, timeout: float) -> dict[str, Any]:
    """Seconds until a buffer of `size` bytes that the driver holds is on each other node, all pulling at once; errors as
    `ask`."""
    # In a list: Ray would fetch a bare reference before the clock starts.
    held = [ray.put(np.zeros(size, np.uint8))]
    return ask([node for node in nodes if not node.is_drivers], _pull, held, timeout=timeout)


def _pull(held: list[Any]) -> float:
    begin = time.perf_counter()
    ray.get(held[0])
    return time.perf_counter() - begin


def has_token() -> bool:
    """Whether the joined cluster lets in only who has its token; Ray shows it nowhere public."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return is_token_auth_enabled()
