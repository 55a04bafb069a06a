"""What one machine has, found out by a process on it: the driver's own, or one that was sent to a node."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from sdr1.base.errors import UserError, reason
from sdr1.config.training import Config

PACKAGES = ("sdr1", "ray", "torch", "diffusers", "transformers", "peft", "open_clip_torch", "numpy")
"""Those whose version decides what actors say to each other, and what they compute."""
PROBE_BYTES = 32 * 2**20
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """Bytes and counts as this process sees them."""

    versions: dict[str, str]
    memory: int
    """Bytes of RAM, or the container's limit where that is less."""
    gpus: tuple[int, ...]
    """Bytes of each GPU that torch sees."""
    shm: int
    """Bytes of /dev/shm; 0 where there is none."""
    open_files: int
    processes: int
    """Limits of this process; 2**31 and more is none."""
    files: str = ""
    """What is wrong here with the files that the config names; empty: nothing."""
    folder: str = ""
    """The same for the run's folder."""
    written: float = 0.0
    """Bytes a second into the run's folder, synced to the disk; 0: not tried."""


def look() -> Machine:
    """What this machine has, whatever a config says."""
    import torch

    count = torch.cuda.device_count()
    return Machine(
        versions=_versions(),
        memory=_memory(),
        gpus=tuple(torch.cuda.get_device_properties(n).total_memory for n in range(count)),
        shm=_size(Path("/dev/shm")),
        open_files=_limit(resource.RLIMIT_NOFILE),
        processes=_limit(resource.RLIMIT_NPROC),
    )


def visit(config: Config | None, probe: Path | None) -> Machine:
    """On a node: the same, whether the config's models are here, and whether the run's folder is the driver's.

    `probe` is a folder that the driver made there.
    """
    # Ray hides the GPUs from a process that asked for none; torch has not looked yet.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    found = look()
    if config is not None:
        found = replace(found, files=problem_of_models(config))
    if probe is None:
        return found
    if not probe.is_dir():
        return replace(found, folder="what the driver writes there is not seen here")
    try:
        return replace(found, written=speed(probe / uuid.uuid4().hex))
    except OSError as error:
        return replace(found, folder=f"cannot be written here ({error.strerror})")


def speed(file: Path) -> float:
    """Bytes a second that a new file takes until they are on the disk.

    Raises:
        OSError: it cannot be written.
    """
    block = os.urandom(2**20)
    begin = time.perf_counter()
    with open(file, "xb") as target:
        for _ in range(PROBE_BYTES // len(block)):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    return PROBE_BYTES / (time.perf_counter() - begin)


def problem_of_models(config: Config) -> str:
    """What is wrong here with the models that a config names; empty: nothing."""
    from sdr1.models import pipeline_files, policy
    from sdr1.rewards import scorer

    try:
        policy.check(config.policy)
        scorer.check(config.reward)
        if pipeline_files.locate(config.policy) is None:
            _require_weights(config.policy.model, config.policy.revision)
    except UserError as error:
        return str(error)
    return ""


def _require_weights(hub_id: str, revision: str | None) -> None:
    """Raise UserError unless a pipeline's weights are cached, or the hub answers for them."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
        if all(any((folder / part).glob("*.safetensors")) for part in ("unet", "vae", "text_encoder")):
            return
        HfApi().model_info(hub_id, revision=revision, timeout=10)
    except (OSError, ValueError) as error:
        raise UserError(
            f"policy.model: {hub_id!r}: its weights are not cached here and the hub does not answer ({reason(error)}); "
            "download it, and give the folder"
        ) from error


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def unmet() -> list[str]:
    """What this machine's packages lack of what sdr1 asks for, one entry each."""
    from packaging.requirements import Requirement

    found = []
    for text in importlib.metadata.requires("sdr1") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(have, prereleases=True):
            found.append(f"{needed.name} {have} is not {needed.specifier}")
    return found


def _memory() -> int:
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        try:
            sizes.append(int(Path(path).read_text()))
        except (OSError, ValueError):
            # Not this kind of system, or "max".
            continue
    return min(sizes)


def _size(path: Path) -> int:
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_frsize * found.f_blocks


def _limit(kind: int) -> int:
    soft, _ = resource.getrlimit(kind)
    return 2**63 - 1 if soft == resource.RLIM_INFINITY else soft
