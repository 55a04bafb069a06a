"""Everything that the checks judge, as it was found on the driver, on the nodes and at MLflow."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdr1.base.errors import TrainingError, UserError, reason
from sdr1.config.files import load
from sdr1.config.training import Config, RunConfig
from sdr1.doctor.machine import Machine, look, speed, visit
from sdr1.planning.record import Plan

MOST_PULLED = 256 * 2**20
"""Bytes of the buffer that is timed, at most."""
_SOME = 32 * 2**20
"""Bytes of it where no config says how large the weights are."""


@dataclass(frozen=True)
class NodeGround:
    """A node of the cluster."""

    resources: dict[str, float]
    """What Ray may place there; memory in bytes."""
    machine: Machine | None
    problem: str = ""
    """Why it is not known, where it is not."""
    clock: float = 0.0
    """Seconds ahead of the driver's."""
    pulled: float | None = None
    """Seconds until a buffer of `Ground.pulled` bytes was there; None: not tried."""


@dataclass(frozen=True)
class Ground:
    """A part that could not be looked at has its reason in `problems`, by the name of the check."""

    config: Config | None
    plan: Plan | None
    driver: Machine
    nodes: dict[str, NodeGround] = field(default_factory=dict)
    token: bool = True
    joins: bool = False
    """Whether the cluster is one that others started."""
    pulled: int = 0
    free: int | None = None
    """Bytes free where the run's folder will be."""
    tracking: str = ""
    """What is well with MLflow."""
    problems: dict[str, str] = field(default_factory=dict)


def survey(path: Path | None, overrides: Sequence[str], address: str | None) -> Ground:
    """Look at everything; nothing stays behind but what `probe` of MLflow says."""
    problems: dict[str, str] = {}
    joins = bool(address or os.environ.get("RAY_ADDRESS"))
    config: Config | None = None
    plan: Plan | None = None
    tracking = ""
    if path is not None:
        with _noted(problems, "config"):
            config = load(path, overrides)
    if config is not None:
        from sdr1.planning.plan import plan as make
        from sdr1.training import run, run_folder

        with _noted(problems, "config"):
            run.check(config, devices_here=not joins)
            run_folder.check(config)
        with _noted(problems, "memory"):
            plan = make(config)
        if config.tracking.enabled:
            from sdr1.training.observers.tracking.store import probe

            with _noted(problems, "mlflow"):
                tracking = probe(config)
    driver, free = look(), None
    with ExitStack() as stack:
        folder = None
        if config is not None:
            with _noted(problems, "folder"):
                folder, free = stack.enter_context(_probe(config.run.directory))
                driver = replace(driver, written=speed(folder / "driver"))
        ground = Ground(config, plan, driver, joins=joins, free=free, tracking=tracking, problems=problems)
        with _noted(problems, "ray"):
            ground = _with_nodes(ground, address, folder)
    return ground


def _with_nodes(ground: Ground, address: str | None, folder: Path | None) -> Ground:
    from sdr1.distributed import nodes
    from sdr1.distributed.cluster import joined
    from sdr1.training.on_ray.start import cores

    config = ground.config
    # A node imports torch before it answers, as a worker does.
    patience = (config.run if config else RunConfig()).start_timeout
    size = min(MOST_PULLED, ground.plan["bytes_per_iteration"]["weights_published"]) if ground.plan else _SOME
    with joined(address, cores(config) if config else 1), nodes.visited() as found:
        looked = nodes.ask(found, visit, config, folder, timeout=patience)
        well = [node for node in found if isinstance(looked[node.name], Machine)]
        clocks = {node.name: nodes.clock_offset(node, patience) for node in well}
        pulled = nodes.pull_seconds(well, size, patience)
        grounds = {}
        for node in found:
            answer = looked[node.name]
            if not isinstance(answer, Machine):
                grounds[node.name] = NodeGround(node.resources, None, _told(answer))
                continue
            seconds = pulled.get(node.name)
            late = _told(seconds) if isinstance(seconds, Exception) else ""
            grounds[node.name] = NodeGround(
                node.resources, answer, late, clocks[node.name], None if late else seconds
            )
        return replace(ground, nodes=grounds, token=nodes.has_token(), pulled=size)


@contextmanager
def _probe(directory: Path) -> Iterator[tuple[Path, int]]:
    """A folder where the run's will be, which goes away again, and the bytes that are free there."""
    above = next(each for each in (directory.absolute(), *directory.absolute().parents) if each.is_dir())
    try:
        made = tempfile.TemporaryDirectory(dir=above, prefix=".sdr1-doctor-")
    except OSError as error:
        raise UserError(
            f"run.directory: {directory}: {above} cannot be written ({error.strerror}); choose another folder"
        ) from error
    with made as folder:
        # Other nodes' processes may belong to another user.
        os.chmod(folder, 0o1777)
        room = os.statvfs(folder)
        yield Path(folder), room.f_bavail * room.f_frsize


@contextmanager
def _noted(problems: dict[str, str], check: str) -> Iterator[None]:
    try:
        yield
    except (UserError, TrainingError, OSError) as error:
        problems.setdefault(check, _told(error))


def _told(error: Any) -> str:
    return str(error) if isinstance(error, UserError | TrainingError) else reason(error)
