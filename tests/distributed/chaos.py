"""Seeded runs in which something dies; `make chaos` counts how many end with the bits of the undisturbed run.

Each run is a real `sdr1 train` on Ray in its own process; a victim is killed (SIGKILL) or frozen (SIGSTOP) at a random
moment. A run whose driver died is started again with --resume, as a cluster would.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

CONFIG = "configs/sandbox-smoke.yaml"
OVERRIDES = [
    "iterations=6", "rollout.workers=2", "policy.guidance_scale=1", "run.task_timeout=25", "run.resume=auto",
]  # fmt: skip
ACTORS = {"rollout": "RolloutActor", "reward": "RewardActor", "learner": "LearnerActor"}
VICTIMS = ("rollout", "reward", "learner", "driver")
PATIENCE = 300.0
"""Seconds after which a run counts as hanging."""


def main() -> int:
    count, seed = int(os.environ.get("CHAOS_RUNS", "50")), int(os.environ.get("CHAOS_SEED", "0"))
    root = Path("outputs/chaos")
    shutil.rmtree(root, ignore_errors=True)
    undisturbed = _sha(_finish(_start(root / "undisturbed")))
    reference = undisturbed
    result = {
        "runs": 0, "finished": 0, "bit_identical": 0, "mlflow_gaps": 0, "mlflow_repeats": 0,
        "kills": Counter(), "worst_recovery_seconds": 0.0, "seed": seed, "failures": [],
    }  # fmt: skip
    for number in range(count):
        rng = random.Random(seed * 1000 + number)
        folder = root / f"run-{number:03d}"
        events = [
            (rng.uniform(0.0, 6.0), rng.choice(VICTIMS), rng.random() < 0.7)
            for _ in range(rng.choice((1, 1, 2)))
        ]
        sha, recovery, kills = _run(folder, sorted(events))
        result["runs"] += 1
        result["finished"] += sha is not None
        result["bit_identical"] += sha == reference
        result["kills"].update(kills)
        result["worst_recovery_seconds"] = max(result["worst_recovery_seconds"], recovery)
        gaps, repeats = _mlflow_steps(folder)
        result["mlflow_gaps"] += gaps
        result["mlflow_repeats"] += repeats
        if sha != reference or gaps or repeats:
            result["failures"].append(
                {"run": number, "events": events, "sha": sha, "gaps": gaps, "repeats": repeats}
            )
        print(f"run {number}: {', '.join(kills) or 'too late to kill'}: same bits {sha == reference}, "
              f"recovery {recovery:.1f} s", flush=True)  # fmt: skip
        Path("outputs/chaos.json").write_text(
            json.dumps(result | {"kills": dict(result["kills"])}, indent=2) + "\n"
        )
    return (
        0 if result["bit_identical"] == count and not result["mlflow_gaps"] + result["mlflow_repeats"] else 1
    )


def _run(folder: Path, events: list[tuple[float, str, bool]]) -> tuple[str | None, float, list[str]]:
    """The final checksum, the longest silence between two iterations after a kill, and what was killed."""
    process, kills, worst = _start(folder), [], 0.0
    deadline = time.monotonic() + PATIENCE
    _wait_for_lines(folder, 1, process, deadline)
    begin, seen, last = time.monotonic(), 1, time.monotonic()
    pending = list(events)
    while time.monotonic() < deadline:
        if pending and time.monotonic() - begin > pending[0][0]:
            _, victim, hard = pending.pop(0)
            if _kill(process, victim, hard):
                kills.append(f"{victim}:{'SIGKILL' if hard else 'SIGSTOP'}")
                last = time.monotonic()
        code = process.poll()
        lines = _lines(folder)
        if lines > seen or code == 0:
            worst = max(worst, time.monotonic() - last) if kills else worst
            seen, last = lines, time.monotonic()
        if code == 0:
            _end_tree(process)
            return _sha(_output(folder)), worst, kills
        if code is not None:
            _end_ray_of(folder)
            process = _start(folder)
        elif (
            kills
            and kills[-1] == "driver:SIGSTOP"
            and psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
        ):
            # Nobody inside can see a frozen driver; a cluster's job controller ends it.
            time.sleep(1)
            process.kill()
            process.wait()
        time.sleep(0.05)
    print(_output(folder)[-2000:], file=sys.stderr)
    _end_tree(process)
    _end_ray_of(folder)
    return None, worst, kills


def _start(folder: Path) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sdr1", "train", CONFIG, *OVERRIDES, f"run.directory={folder / 'run'}"]
    environment = os.environ | {"CHAOS_FOLDER": str(folder), "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def _finish(process: subprocess.Popen) -> str:
    if process.wait(timeout=PATIENCE):
        raise RuntimeError("the undisturbed run failed; see outputs/chaos/undisturbed/log.txt")
    return Path("outputs/chaos/undisturbed/log.txt").read_text()


def _kill(process: subprocess.Popen, victim: str, hard: bool) -> bool:
    if process.poll() is not None:
        return False
    how = signal.SIGKILL if hard else signal.SIGSTOP
    if victim == "driver":
        os.kill(process.pid, how)
        return True
    found = [p for p in _family(process.pid) if ACTORS[victim] in " ".join(_command(p))]
    if not found:
        return False
    os.kill(found[0].pid, how)
    return True


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _end_tree(process: subprocess.Popen) -> None:
    for each in [*_family(process.pid)]:
        each.kill()
    if process.poll() is None:
        process.kill()
        process.wait()


def _end_ray_of(folder: Path) -> None:
    """A killed driver leaves its own Ray behind for a while; its processes carry the folder in their environment."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("CHAOS_FOLDER") == str(folder):
                process.kill()
        except psutil.Error:
            continue


def _lines(folder: Path) -> int:
    path = folder / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _wait_for_lines(folder: Path, count: int, process: subprocess.Popen, deadline: float) -> None:
    while _lines(folder) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def _output(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def _sha(output: str) -> str | None:
    found = [line for line in output.splitlines() if line.startswith("weights_sha256=")]
    return found[-1] if found else None


def _mlflow_steps(folder: Path) -> tuple[int, int]:
    """Steps missing and steps logged twice."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("sdr1")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    steps = Counter(p.step for run in runs for p in client.get_metric_history(run.info.run_id, "loss"))
    return sum(step not in steps for step in range(6)), sum(times - 1 for times in steps.values())


if __name__ == "__main__":
    sys.exit(main())
