"""Seeded runs in which something dies: `make chaos` counts how many end with the bits of the undisturbed run.

Every run is a real `sdr1 train` in a process of its own on a local Ray cluster of two nodes. Victims are killed
(SIGKILL) or frozen (SIGSTOP) at random moments while it trains. A driver that was struck is started again with the same
command, which says `run.resume=auto`, as a cluster would; nothing else is helped.

The cluster serves all runs, with a new second node where the old one was struck. Drivers are forked from a process that
has imported their libraries; actors are not.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Before Ray is imported: the cluster and the drivers that join it have to agree.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Workers as polite as whoever started them, not more.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import psutil
from ray.cluster_utils import Cluster

from sdr1.base.files import write_text

ITERATIONS = 5
COMMAND = [
    "train", "configs/sandbox-smoke.yaml", f"iterations={ITERATIONS}", "rollout.workers=2", "rollout.group_size=2",
    "prompts.per_iteration=4", "policy.steps=3", "policy.guidance_scale=1", "run.task_timeout=30",
    "run.start_timeout=90", "run.resume=auto",
]  # fmt: skip
ACTORS = {"rollout": "RolloutActor", "reward": "RewardActor", "learner": "LearnerActor"}
VICTIMS = (*ACTORS, "driver", "raylet")
PATIENCE = 900.0
"""Seconds after which a run counts as hanging."""


@dataclass(frozen=True)
class Event:
    """Strike `victim` with `how`, `delay` seconds after `iteration` iterations are done, or with the next one's end."""

    iteration: int
    delay: float
    victim: str
    how: signal.Signals


@dataclass
class Outcome:
    """What became of one run."""

    sha: str | None = None
    kills: list[str] = field(default_factory=list)
    recovery: float = 0.0
    """Longest time between two iterations after a strike, in seconds."""
    gaps: int = 0
    repeats: int = 0


class Arena:
    """Context manager: two nodes, either of which can hold all actors, and the runs on them below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._processes = get_context("forkserver")
        self._processes.set_forkserver_preload(
            ["sdr1.training.run", "sdr1.models.policy", "ray", "mlflow", "open_clip"]
        )

    def __enter__(self) -> Arena:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        node = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 200 * 2**20}
        self._cluster = Cluster(initialize_head=True, head_node_args=node)
        self._second = self._cluster.add_node(num_cpus=3, object_store_memory=200 * 2**20)
        return self

    def __exit__(self, *_: Any) -> None:
        self._bury(self._second)
        self._cluster.shutdown()

    def run(self, name: str, events: Sequence[Event] = ()) -> Outcome:
        """One run from its start to its end, whatever is struck on the way."""
        self._make_ready()
        outcome, pending = Outcome(), list(events)
        driver, deadline = self._start(name), time.monotonic() + PATIENCE
        lines, struck_at, struck_driver = 0, 0, False
        since = reached = time.monotonic()
        while time.monotonic() < deadline:
            time.sleep(0.02)
            code, found, now = driver.exitcode, self._lines(name), time.monotonic()
            if found > lines or code == 0:
                outcome.recovery = max(outcome.recovery, now - since) if outcome.kills else 0.0
                lines, since, reached = found, now, now
            if code == 0:
                outcome.sha = self._sha(name)
                break
            if code is not None and not struck_driver:
                break
            if code is not None:
                driver, struck_driver = self._start(name), False
            elif struck_driver:
                # Nobody inside can see a frozen driver: whatever runs the job has to end it.
                time.sleep(1)
                driver.kill()
                driver.join()
            elif pending and (
                lines > max(pending[0].iteration, struck_at)
                or (lines >= pending[0].iteration and now - reached > pending[0].delay)
            ):
                event = pending[0]
                if self._strike(event, driver.pid):
                    pending.pop(0)
                    outcome.kills.append(f"{event.victim}:{event.how.name}")
                    since, reached, struck_at = now, now, lines
                    struck_driver = event.victim == "driver"
        if driver.exitcode is None:
            driver.kill()
        if outcome.sha is None:
            print(self._output(name)[-3000:], file=sys.stderr)
        outcome.gaps, outcome.repeats = self._mlflow_steps(name)
        return outcome

    def pace(self, name: str) -> float:
        """Seconds of an iteration of a finished run."""
        rows = [json.loads(line) for line in self._journal(name).read_text().splitlines()]
        return (rows[-1]["time"] - rows[0]["time"]) / (len(rows) - 1)

    def forget(self, name: str) -> None:
        """Give the disk back."""
        shutil.rmtree(self.root / name)

    def _make_ready(self) -> None:
        """Wait for the last run's actors to go, and replace a node that was struck."""
        if not _lives(self._raylet(self._second).pid):
            self._bury(self._second)
            self._second = self._cluster.add_node(num_cpus=3, object_store_memory=200 * 2**20)
        end = time.monotonic() + 60
        while any(self._actors(kind) for kind in ACTORS.values()):
            if time.monotonic() > end:
                for process in [p for kind in ACTORS.values() for p in self._actors(kind)]:
                    process.kill()
            time.sleep(0.1)

    def _bury(self, node: Any) -> None:
        raylet = psutil.Process(self._raylet(node).pid) if _exists(self._raylet(node).pid) else None
        orphans = raylet.children(recursive=True) if raylet else []
        self._cluster.remove_node(node, allow_graceful=False)
        for process in orphans:
            if process.is_running():
                process.kill()

    def _raylet(self, node: Any) -> Any:
        return node.all_processes["raylet"][0].process

    def _actors(self, kind: str) -> list[psutil.Process]:
        found = []
        for node in (self._cluster.head_node, self._second):
            pid = self._raylet(node).pid
            for process in psutil.Process(pid).children(recursive=True) if _exists(pid) else ():
                try:
                    if kind in " ".join(process.cmdline()):
                        found.append(process)
                except psutil.Error:
                    continue
        return found

    def _strike(self, event: Event, driver: int) -> bool:
        """False when there is no such victim now, say because it is just being replaced."""
        if event.victim == "driver":
            try:
                os.kill(driver, event.how)
            except ProcessLookupError:
                return False
            return True
        if event.victim == "raylet":
            raylet = self._raylet(self._second)
            if not _lives(raylet.pid):
                return False
            os.kill(raylet.pid, event.how)
            return True
        for process in self._actors(ACTORS[event.victim]):
            if _lives(process.pid):
                process.send_signal(event.how)
                return True
        return False

    def _start(self, name: str) -> Any:
        arguments = [*COMMAND, f"run.directory={self.root / name}", "--ray-address", self._cluster.address]
        driver = self._processes.Process(target=_drive, args=(arguments, self._log(name)))
        driver.start()
        return driver

    def _log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def _journal(self, name: str) -> Path:
        return self.root / name / "metrics.jsonl"

    def _lines(self, name: str) -> int:
        path = self._journal(name)
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def _output(self, name: str) -> str:
        return self._log(name).read_text()

    def _sha(self, name: str) -> str:
        return [line for line in self._output(name).splitlines() if line.startswith("weights_sha256=")][-1]

    def _mlflow_steps(self, name: str) -> tuple[int, int]:
        """Steps missing and steps logged twice, over every MLflow run that this training opened."""
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("sdr1")
        found = client.search_runs(
            [experiment.experiment_id], filter_string=f"attributes.run_name = '{name}'"
        )
        steps = Counter(
            p.step for run in found for p in client.get_metric_history(run.info.run_id, "5_health/loss")
        )
        return sum(step not in steps for step in range(ITERATIONS)), sum(n - 1 for n in steps.values())


def plan(rng: random.Random, pace: float) -> list[Event]:
    """One to three strikes within the training time."""
    events = [
        Event(
            # One iteration is left then, even where the strike waits for the end of the next one.
            rng.randrange(1, ITERATIONS - 1),
            rng.uniform(0, pace),
            rng.choice(VICTIMS),
            rng.choice((signal.SIGKILL, signal.SIGSTOP)),
        )
        for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
    return sorted(events, key=lambda event: event.iteration)


def main() -> int:
    count, seed = int(os.environ.get("CHAOS_RUNS", "50")), int(os.environ.get("CHAOS_SEED", "0"))
    kills: Counter[str] = Counter()
    result: dict[str, Any] = {
        "runs": 0, "finished": 0, "bit_identical": 0, "mlflow_gaps": 0, "mlflow_repeats": 0, "kills": kills,
        "worst_recovery_seconds": 0.0, "seed": seed, "failures": [],
    }  # fmt: skip
    with Arena(Path("outputs/chaos")) as arena:
        undisturbed, pace = arena.run("undisturbed").sha, arena.pace("undisturbed")
        print(f"undisturbed: {undisturbed}, {pace:.1f} s an iteration", flush=True)
        for number in itertools.count():
            if result["runs"] == count:
                break
            begin, name = time.monotonic(), f"run-{number:03d}"
            events = plan(random.Random(seed * 1000 + number), pace)
            outcome = arena.run(name, events)
            if not outcome.kills:
                print(f"{name}: ended before anything was struck, not counted", flush=True)
                continue
            good = outcome.sha == undisturbed and not outcome.gaps and not outcome.repeats
            result["runs"] += 1
            result["finished"] += outcome.sha is not None
            result["bit_identical"] += outcome.sha == undisturbed
            result["mlflow_gaps"] += outcome.gaps
            result["mlflow_repeats"] += outcome.repeats
            kills.update(outcome.kills)
            result["worst_recovery_seconds"] = max(
                result["worst_recovery_seconds"], round(outcome.recovery, 1)
            )
            if good:
                arena.forget(name)
            else:
                result["failures"].append({"run": number, "events": str(events), "outcome": vars(outcome)})
            print(
                f"{name}: {', '.join(outcome.kills)}: {'same bits' if good else outcome}, recovery "
                f"{outcome.recovery:.1f} s, whole run {time.monotonic() - begin:.0f} s",
                flush=True,
            )
            write_text(Path("outputs/chaos.json"), json.dumps(result, indent=2) + "\n")
    print(
        f"{result['bit_identical']} of {count} runs with the same bits, worst recovery "
        f"{result['worst_recovery_seconds']} s"
    )
    return bool(result["failures"])


def _drive(arguments: list[str], log: Path) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from sdr1.cli import main as cli

    sys.exit(cli(arguments))


def _exists(pid: int) -> bool:
    return psutil.pid_exists(pid)


def _lives(pid: int) -> bool:
    """Neither dead nor frozen."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
