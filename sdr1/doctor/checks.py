"""One check a function: from what was found to what is well, or to what has to be mended.

Each takes the whole `Ground` and returns a line that says what is well, or a list of problems; None where there is
nothing to check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sdr1.config.workers import bounds
from sdr1.doctor.ground import Ground
from sdr1.doctor.machine import Machine, unmet

LEAST_OPEN_FILES = 4096
LEAST_PROCESSES = 2048
"""A Ray node with a few actors has some hundred of each; gRPC opens more with every node."""
MOST_CLOCK = 2.0
"""Seconds apart at which records and certificates begin to contradict each other."""
SLOWEST_CHECKPOINT = 300.0
"""Seconds: half of what the end of a run waits for its last checkpoint."""
GPU_SHARE = 0.9
"""Of a GPU's memory: the plan's figures are estimates."""


class Problem(NamedTuple):
    """What was found, and what to do about it."""

    found: str
    fix: str


Outcome = str | list[Problem] | None


def config(ground: Ground) -> Outcome:
    if "config" in ground.problems:
        return [_split(ground.problems["config"])]
    return (
        None
        if ground.config is None
        else "it can be trained: prompts, models, rewards and folder are in order"
    )


def versions(ground: Ground) -> Outcome:
    problems = [Problem(f"driver: {each}", "install sdr1 with its constraints.txt here") for each in unmet()]
    ours = ground.driver.versions
    for name, machine in _nodes(ground):
        theirs = {package: machine.versions.get(package, "missing") for package in ours}
        unlike = [f"{package} {theirs[package]}" for package in ours if theirs[package] != ours[package]]
        if unlike:
            told = ", ".join(
                f"{package} {ours[package]}" for package in ours if theirs[package] != ours[package]
            )
            problems.append(
                Problem(f"{name}: {', '.join(unlike)}; the driver has {told}", "use one image on all nodes")
            )
    shown = ", ".join(f"{package} {ours[package]}" for package in ("python", "sdr1", "ray", "torch"))
    return problems or f"{shown}, on the driver and {_count(len(ground.nodes), 'node')}"


def ray(ground: Ground) -> Outcome:
    if "ray" in ground.problems:
        return [_split(ground.problems["ray"])]
    problems = [
        Problem(
            f"{name}: {node.problem}", "see its logs in Ray's dashboard; restart the node, or take it out"
        )
        for name, node in ground.nodes.items()
        if node.problem
    ]
    return problems or f"{_count(len(ground.nodes), 'node')} answered" + (
        "" if ground.joins else ", started here for the look"
    )


def token(ground: Ground) -> Outcome:
    if not ground.nodes:
        return None
    if ground.token:
        return "only who has the cluster's token is let in"
    return [
        Problem(
            "anybody who reaches the cluster's ports runs code there",
            "set RAY_AUTH_MODE=token on every node and here; `ray get-auth-token --generate` makes one",
        )
    ]


def processors(ground: Ground) -> Outcome:
    """CPUs and GPUs that Ray offers, against those that the least fleet takes."""
    if ground.config is None or not ground.nodes:
        return None
    config = ground.config
    problems: list[Problem] = []
    offered = {
        kind: sum(node.resources.get(kind, 0) for node in ground.nodes.values()) for kind in ("CPU", "GPU")
    }
    actors = _least_actors(ground)
    needed = {
        "CPU": float(config.run.threads * (actors["learner"] + actors["rollout"])),
        "GPU": config.gpu_share
        * sum(n for role, n in actors.items() if getattr(config, role).device != "cpu"),
    }
    fixes = {
        "CPU": "add nodes, or lower rollout.workers, learner.ranks or run.threads",
        "GPU": "add GPU nodes, lower rollout.workers, or set run.placement=shared or devices to cpu",
    }
    for kind, wanted in needed.items():
        # The share of one GPU is rounded down.
        if offered[kind] < wanted - 1e-3:
            problems.append(
                Problem(f"the config needs {wanted:.3g} {kind}s, Ray offers {offered[kind]:g}", fixes[kind])
            )
    for name, node in ground.nodes.items():
        announced = node.resources.get("GPU", 0)
        if node.machine is not None and len(node.machine.gpus) < announced:
            problems.append(
                Problem(
                    f"{name}: Ray offers {announced:g} GPUs, torch sees {len(node.machine.gpus)}",
                    "check its driver with nvidia-smi and that torch is built for CUDA",
                )
            )
    return problems or ", ".join(f"{needed[kind]:.3g} of {offered[kind]:g} {kind}s" for kind in needed)


def memory(ground: Ground) -> Outcome:
    """The plan's peaks against the RAM of all nodes and the memory of each GPU."""
    if "memory" in ground.problems and "config" not in ground.problems:
        return [_split(ground.problems["memory"])]
    if ground.plan is None or not ground.nodes:
        return None
    actors, planned = _least_actors(ground), ground.plan["memory"]
    on_cpu = {role: each["total"] for role, each in planned.items() if each["device"] == "cpu"}
    on_gpu = {role: each["total"] for role, each in planned.items() if each["device"] != "cpu"}
    problems: list[Problem] = []
    told: list[str] = []
    if on_cpu:
        needed = sum(actors[role] * size for role, size in on_cpu.items())
        sizes = [machine.memory for _, machine in _nodes(ground)]
        role, largest = max(on_cpu.items(), key=lambda each: each[1])
        fix = "add memory or nodes, or lower learner.micro_batch, rollout.group_size or rollout.workers"
        if sizes and largest > max(sizes):
            problems.append(
                Problem(f"{role} needs {_gb(largest)}, the largest node has {_gb(max(sizes))}", fix)
            )
        elif needed > sum(sizes):
            problems.append(Problem(f"the actors need {_gb(needed)}, all nodes have {_gb(sum(sizes))}", fix))
        told.append(f"{_gb(needed)} of {_gb(sum(sizes))} RAM")
    if on_gpu:
        shared = ground.plan.get("memory_on_the_one_gpu")
        role, most = max(on_gpu.items(), key=lambda each: each[1])
        who, most = ("all that share it", shared) if shared else (role, most)
        fix = "lower learner.micro_batch or rollout.group_size, set policy.gradient_checkpointing, or train with LoRA"
        for name, machine in _nodes(ground):
            small = [size for size in machine.gpus if GPU_SHARE * size < most]
            if small and ground.nodes[name].resources.get("GPU", 0):
                problems.append(
                    Problem(f"{name}: {who} needs {_gb(most)} of a GPU that has {_gb(min(small))}", fix)
                )
        told.append(f"{_gb(most)} of a GPU")
    return problems or ", ".join(told)


def folder(ground: Ground) -> Outcome:
    """Whether every node sees and writes the run's folder, how fast, and whether its checkpoints have room."""
    if "folder" in ground.problems:
        return [_split(ground.problems["folder"])]
    if ground.config is None:
        return None
    directory = ground.config.run.directory
    # Only the driver writes there; from the copy the run goes on on any node.
    is_copied = ground.config.run.storage is not None
    problems = [
        Problem(
            f"run.directory: {directory}: {name}: {machine.folder}",
            "mount one file system there on every node",
        )
        for name, machine in _nodes(ground)
        if machine.folder and not is_copied
    ]
    if "working_dir_files" in directory.resolve().parts and not is_copied:
        problems.append(
            Problem(
                f"run.directory: {directory}: lies in Ray's copy of the job's files and goes with it",
                "give an absolute path that outlives the cluster",
            )
        )
    slowest = min([ground.driver.written, *(m.written for _, m in _nodes(ground) if m.written)])
    if ground.plan is not None:
        state = _state_bytes(ground)
        kept = (ground.config.checkpoint.keep + 2) * state
        if ground.free is not None and ground.free < kept:
            problems.append(
                Problem(
                    f"run.directory: {directory}: {_gb(ground.free)} free, checkpoints take {_gb(kept)}",
                    "make room, or lower checkpoint.keep",
                )
            )
        if state / ground.driver.written > SLOWEST_CHECKPOINT:
            problems.append(
                Problem(
                    f"run.directory: {directory}: {_gb(ground.driver.written)}/s: a checkpoint takes "
                    f"{state / ground.driver.written:.0f} s",
                    "use a faster file system, or raise checkpoint.every",
                )
            )
    free = "" if ground.free is None else f", {_gb(ground.free)} free"
    return problems or f"{directory} takes {_gb(slowest)}/s from the driver and every node{free}"


def files(ground: Ground) -> Outcome:
    """The models that actors load, on the nodes where they may land."""
    if ground.config is None or not ground.nodes or "config" in ground.problems:
        return None
    problems = [
        Problem(f"{name}: {found}", fix)
        for name, machine in _nodes(ground)
        if machine.files
        for found, fix in [_split(machine.files)]
    ]
    return problems or "every node finds the models"


def clocks(ground: Ground) -> Outcome:
    apart = {name: node.clock for name, node in ground.nodes.items() if node.machine is not None}
    if not apart:
        return None
    problems = [
        Problem(
            f"{name}: its clock is {seconds:+.1f} s off the driver's",
            "start chrony or systemd-timesyncd there",
        )
        for name, seconds in apart.items()
        if abs(seconds) > MOST_CLOCK
    ]
    return problems or f"within {max(map(abs, apart.values())):.1f} s of the driver's"


def mlflow(ground: Ground) -> Outcome:
    if "mlflow" in ground.problems:
        return [_split(ground.problems["mlflow"])]
    return ground.tracking or None


def broadcast(ground: Ground) -> Outcome:
    """How long a version's weights take to every node at once."""
    times = {name: node.pulled for name, node in ground.nodes.items() if node.pulled is not None}
    if not times:
        return "one node: weights stay in its shared memory" if len(ground.nodes) == 1 else None
    rates = {name: ground.pulled / max(seconds, 1e-6) for name, seconds in times.items()}
    problems = []
    if ground.config is not None and ground.plan is not None:
        weights, limit = (
            ground.plan["bytes_per_iteration"]["weights_published"],
            ground.config.run.task_timeout / 2,
        )
        problems = [
            Problem(
                f"{name}: {_gb(rate)}/s: weights of {_gb(weights)} take {weights / rate:.0f} s, half of run.task_timeout "
                f"is {limit:.0f} s",
                "use a faster network, train with LoRA, or raise run.task_timeout",
            )
            for name, rate in rates.items()
            if weights / rate > limit
        ]
    return (
        problems
        or f"{_gb(ground.pulled)} to {_count(len(rates), 'node')} at {_gb(min(rates.values()))}/s or more"
    )


def store(ground: Ground) -> Outcome:
    """Ray's object stores: the learner's node holds weights and snapshots there, and one iteration passes through."""
    sizes = {name: node.resources.get("object_store_memory", 0.0) for name, node in ground.nodes.items()}
    if not sizes:
        return None
    if ground.config is None or ground.plan is None:
        return ", ".join(f"{name} {_gb(size)}" for name, size in sizes.items())
    moved = ground.plan["bytes_per_iteration"]
    published = (2 + ground.config.rollout.max_staleness) * moved["weights_published"]
    passing = moved["trajectories"] + moved["reference_means"] + moved["images"]
    needed = published + 2 * _state_bytes(ground) + passing
    if max(sizes.values()) < needed:
        return [
            Problem(
                f"weights, two snapshots and an iteration take {_gb(needed)}, the largest object store has "
                f"{_gb(max(sizes.values()))}: Ray would move them to disk",
                "start Ray with --object-store-memory and a larger /dev/shm",
            )
        ]
    return f"{_gb(needed)} of {_gb(max(sizes.values()))}"


def shm(ground: Ground) -> Outcome:
    """Where /dev/shm is smaller than the object store Ray puts it on the disk."""
    problems = [
        Problem(
            f"{name}: /dev/shm has {_gb(machine.shm)}, its object store {_gb(size)}",
            "give the container --shm-size, in Kubernetes an emptyDir of medium Memory",
        )
        for name, machine in _nodes(ground)
        if machine.shm < (size := ground.nodes[name].resources.get("object_store_memory", 0.0))
    ]
    return problems or (
        f"on {_count(len(ground.nodes), 'node')} larger than its object store" if ground.nodes else None
    )


def ulimits(ground: Ground) -> Outcome:
    problems = []
    for name, machine in [("driver", ground.driver), *_nodes(ground)]:
        if machine.open_files < LEAST_OPEN_FILES:
            problems.append(
                Problem(f"{name}: {machine.open_files} open files allowed", "raise it: ulimit -n 65536")
            )
        if machine.processes < LEAST_PROCESSES:
            problems.append(
                Problem(f"{name}: {machine.processes} processes allowed", "raise it: ulimit -u 65536")
            )
    return (
        problems or f"at least {LEAST_OPEN_FILES} open files and {LEAST_PROCESSES} processes on each machine"
    )


CHECKS: dict[str, Callable[[Ground], Outcome]] = {
    each.__name__: each
    for each in (
        config, versions, ray, token, processors, memory, folder, files, clocks, mlflow, broadcast, store, shm, ulimits,
    )
}  # fmt: skip


def _nodes(ground: Ground) -> Iterator[tuple[str, Machine]]:
    return ((name, node.machine) for name, node in ground.nodes.items() if node.machine is not None)


def _least_actors(ground: Ground) -> dict[str, int]:
    assert ground.config is not None
    return {
        "learner": ground.config.learner.ranks,
        "rollout": bounds(ground.config.rollout.workers).min,
        "reward": bounds(ground.config.reward.workers).min,
    }


def _state_bytes(ground: Ground) -> int:
    """Of a checkpoint: weights and AdamW's two moments."""
    assert ground.plan is not None
    return 3 * ground.plan["bytes_per_iteration"]["weights_published"]


def _split(line: str) -> Problem:
    """The error of another part: what follows the last semicolon is its fix."""
    found, semicolon, fix = line.rpartition("; ")
    return Problem(found, fix) if semicolon else Problem(line, "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
