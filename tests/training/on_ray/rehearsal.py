"""A job on hosts that join, leave and lose their link while it runs: `make rehearse` says whether the result is the same.

Network namespaces are the hosts: the head's, with driver, learner and reward worker, and one for each rollout worker. The
job is handed in by `ray job submit`, with a token. Links are limited, so that weights take most of an iteration's time
and an iteration takes about as long on any machine, with any number of hosts: the head's link is as wide as all others.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

# Workers as polite as whoever started them, not more.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

from rich.console import Console
from rich.table import Table

from sdr1.base.files import write_text
from sdr1.config.files import load
from sdr1.planning.counts import count
from sdr1.planning.plan import plan
from sdr1.training import run_folder
from sdr1.training.observers import journal
from tests.training.on_ray.hosts import Network, RayHosts, Unavailable

RESULT = Path("outputs/rehearsal.json")
CONFIG = Path("configs/sandbox-smoke.yaml")
CHANGES = [
    # Weights of 21 MB: large beside what Ray's processes say to each other.
    "policy.trainable=full", "learner.learning_rate=1.0e-4", "policy.steps=3", "policy.guidance_scale=1",
    "prompts.per_iteration=6", "rollout.group_size=2", "rollout.workers.min=1", "rollout.workers.max=3",
    "checkpoint.every=20", "tracking.enabled=false",
]  # fmt: skip
MEGABITS = 25
"""A second, on a rollout host's link."""
HEAD_MEGABITS = 3 * MEGABITS
"""A second, on the head's."""
CUT = 30.0
"""Seconds without a link."""
SETTLED = 3
"""Iterations between two changes."""
PATIENCE = 900.0
"""Seconds after which something that does not happen counts as a failure."""
ASK_EVERY = 30.0
"""Seconds between two questions whether the job still runs."""
ITERATIONS = "REHEARSAL_ITERATIONS"
"""Environment variable: for how many the job is asked."""
JOB = "rehearsal"
ENDS = {"succeeded": "SUCCEEDED", "failed": "FAILED", "was stopped": "STOPPED"}
"""What Ray's command line says of a job that is over."""
LOST, LEFT = "one of the rollout workers was lost", "one of the rollout workers leaves"
"""What the driver says of them."""


class Failed(Exception):
    """What did not happen."""


@dataclass(frozen=True)
class Moment:
    """Something that was done to the job's hosts, and how the job went until the next."""

    event: str
    seconds: float
    """Since the job was handed in."""
    iteration: int
    workers: int
    """In service when the latest iteration of the stretch ended, or the latest before it."""
    images_per_second: float
    """Learned from."""


class Job:
    """The run: handed in, watched through its record, and the bytes on each link at the end of each iteration."""

    def __init__(self, network: Network, hosts: RayHosts, folder: Path, iterations: int) -> None:
        self._iterations = iterations
        self._network, self._hosts, self._folder = network, hosts, folder
        self.arguments = [str(CONFIG), *CHANGES, f"iterations={iterations}"]
        self.images = count(load(CONFIG, self.arguments[1:])).images
        self.rows: list[journal.Row] = []
        self.bytes: list[dict[str, tuple[int, int]]] = []
        self._events: list[tuple[str, float, int]] = []
        self._unread = 0
        """Attempts in a row to read the links' counters that failed."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def submit(self) -> None:
        self._begin = time.monotonic()
        handed = self._hosts.run(
            "ray", "job", "submit", "--working-dir", ".", "--submission-id", JOB, "--no-wait", "--", "sdr1", "train",
            *self.arguments, "--ray-address", "auto", f"run.directory={self._folder}",
        )  # fmt: skip
        if handed.returncode:
            raise Failed(f"the job was not taken: {handed.stdout}{handed.stderr}")
        self.note("job submitted")
        self._thread.start()

    def note(self, event: str) -> None:
        self._events.append((event, time.monotonic() - self._begin, len(self.rows)))
        print(f"{self._events[-1][1]:6.0f} s  after iteration {len(self.rows):3d}  {event}", flush=True)

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Watch the job until something is so.

        Raises:
            Failed: it does not come to that, or the job ended before.
        """
        end = time.monotonic() + PATIENCE
        asked = time.monotonic()
        while not is_so():
            if self._unread > 50 or not self._thread.is_alive():
                raise Failed(f"{what}: the bytes on the links can no longer be read")
            if time.monotonic() - asked > ASK_EVERY:
                status, asked = self.status(), time.monotonic()
                if is_so():
                    return
                if status == "SUCCEEDED":
                    raise Failed(
                        f"{what}: the job's {self._iterations} iterations were over before that; "
                        f"{ITERATIONS}={2 * self._iterations} gives it time"
                    )
                if status != "RUNNING" or asked > end:
                    raise Failed(
                        f"{what}: not while the job was {status}; its log ends:\n{self.log()[-3000:]}"
                    )
            time.sleep(0.1)

    def workers(self, count: int) -> None:
        """Until so many rollout workers have made the latest iteration, and then some iterations more."""
        known = len(self.rows)
        self.until(
            f"{count} rollout workers",
            lambda: len(self.rows) > known and self.rows[-1]["rollout_workers"] == count,
        )
        self.settle()

    def settle(self) -> None:
        known = len(self.rows)
        self.until(f"{SETTLED} iterations more", lambda: len(self.rows) >= known + SETTLED)

    def finish(self) -> None:
        """Until the job has ended.

        Raises:
            Failed: it does not, or not well.
        """
        self.until("the last iteration", lambda: len(self.rows) == self._iterations)
        end = time.monotonic() + PATIENCE
        while (status := self.status()) == "RUNNING" and time.monotonic() < end:
            time.sleep(2)
        self._over.set()
        self._thread.join()
        self.note("job over")
        if status != "SUCCEEDED":
            raise Failed(
                f"after its last iteration the job was {status}; its log ends:\n{self.log()[-3000:]}"
            )

    def status(self) -> str:
        told = self._hosts.run("ray", "job", "status", JOB)
        said = told.stdout + told.stderr
        return next((status for words, status in ENDS.items() if f"Job '{JOB}' {words}" in said), "RUNNING")

    def log(self) -> str:
        return self._hosts.run("ray", "job", "logs", JOB).stdout

    def rollouts(self) -> int:
        """Groups that rollout workers were asked for, whatever came of them."""
        program = (
            "import ray\nfrom ray.util.state import summarize_tasks\n"
            "ray.init('auto', log_to_driver=False)\nfound = summarize_tasks()['cluster']['summary']\n"
            "print('COUNT', sum(found['RolloutActor.rollout']['state_counts'].values()))\n"
        )
        told = self._hosts.run(sys.executable, "-c", program)
        counts = [line for line in told.stdout.splitlines() if line.startswith("COUNT ")]
        if not counts:
            raise Failed(f"Ray does not say how many groups were made: {told.stdout}{told.stderr}")
        return int(counts[0].removeprefix("COUNT "))

    def moments(self) -> list[Moment]:
        """Each with the stretch up to the next; the last event is the end."""
        found = []
        for (event, begin, after), (_, end, before) in pairwise(self._events):
            workers = int(self.rows[before - 1]["rollout_workers"]) if before else 0
            speed = (before - after) * self.images / (end - begin)
            found.append(Moment(event, round(begin, 1), after, workers, round(speed, 2)))
        return found

    def _watch(self) -> None:
        path = self._folder / journal.NAME
        while not self._over.wait(0.1):
            rows = journal.read(path)[0] if path.exists() else []
            if len(rows) == len(self.rows):
                continue
            try:
                seen = self._network.bytes()
            except subprocess.SubprocessError:
                # Not these rows, then, until the links can be read again.
                self._unread += 1
                continue
            self._unread = 0
            self.bytes += [seen] * (len(rows) - len(self.bytes))
            self.rows = rows


def scenario(network: Network, hosts: RayHosts, job: Job) -> dict[str, tuple[int, int]]:
    """What happens to the hosts; for each rollout host the iterations in which it took part without a break."""
    hosts.join("head", HEAD_MEGABITS)
    hosts.wait(PATIENCE)
    job.submit()
    spans: dict[str, tuple[int, int]] = {}
    joined: dict[str, int] = {}
    names = ["rollout-1", "rollout-2", "rollout-3"]
    for workers, name in enumerate(names, 1):
        hosts.join(name, MEGABITS)
        job.note(f"{name} joins")
        job.workers(workers)
        joined[name] = len(job.rows) - SETTLED
    spans["rollout-2"] = joined["rollout-2"], len(job.rows)
    network.cut("rollout-2")
    job.note(f"rollout-2's link is cut for {CUT:.0f} s")
    end = time.monotonic() + CUT
    job.until("the end of the cut", lambda: time.monotonic() > end)
    network.mend("rollout-2")
    job.note("rollout-2's link is back")
    job.workers(3)
    spans["rollout-1"] = joined["rollout-1"], len(job.rows)
    job.note("rollout-1 is asked to leave")
    hosts.leave("rollout-1", graceful=True)
    job.workers(2)
    spans["rollout-3"] = joined["rollout-3"], len(job.rows)
    job.note("rollout-3's power fails")
    hosts.leave("rollout-3", graceful=False)
    job.workers(1)
    return spans


def copies(job: Job, spans: dict[str, tuple[int, int]], size: int) -> dict[str, float]:
    """Bytes that came to each host for each version of the weights, as a multiple of their size.

    The row of an iteration is written before the next version is on its way.
    """
    found = {}
    for name, (first, last) in spans.items():
        came = job.bytes[last - 1][name][0] - job.bytes[first - 1][name][0]
        found[name] = round(came / size / (last - first), 3)
    return found


def rehearse(folder: Path, iterations: int) -> dict[str, Any]:
    """Run it all; what is found goes into the result, and what is wrong with it under `failures`."""
    (folder / "logs").mkdir(parents=True)
    begin, config = time.monotonic(), load(CONFIG, [*CHANGES, f"iterations={iterations}"])
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # A busy machine takes longer than the 30 s that Ray gives it.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600",
    }
    memory = [f"--object-store-memory={200 * 2**20}", "--disable-usage-stats"]
    with Network() as network:
        hosts = RayHosts(network, folder / "logs", environment, memory)
        job = Job(network, hosts, folder / "run", iterations)
        spans = scenario(network, hosts, job)
        job.finish()
        write_text(folder / "logs" / "job.log", log := job.log())
        groups = iterations * config.prompts.per_iteration
        remade = job.rollouts() - groups
    local = [
        sys.executable,
        "-m",
        "sdr1",
        "train",
        *job.arguments,
        "--local",
        f"run.directory={folder / 'local'}",
    ]
    subprocess.run(local, check=True, stdout=subprocess.DEVNULL)
    size = plan(config)["bytes_per_iteration"]["weights_published"]
    found = {
        "seconds": round(time.monotonic() - begin, 1),
        "iterations": len(job.rows),
        "weights_sha256": _sha(folder / "run"),
        "weights_sha256_local": _sha(folder / "local"),
        "weights_bytes": size,
        "copies_per_version_and_host": copies(job, spans, size),
        "bytes_to_and_from_hosts_by_iteration": job.bytes,
        "workers_lost": log.count(LOST),
        "workers_left": log.count(LEFT),
        "groups_made_again": remade,
        "moments": [asdict(moment) for moment in job.moments()],
    }
    return found | {"failures": failures(found, config.prompts.per_iteration)}


def failures(found: dict[str, Any], groups: int) -> list[str]:
    """What is not as it has to be, where an iteration has so many groups."""
    said = []
    if found["weights_sha256"] != found["weights_sha256_local"]:
        said.append("the weights are not those of the undisturbed run")
    for host, times in found["copies_per_version_and_host"].items():
        if not 0.5 < times < 1.5:
            said.append(f"{host}: the weights crossed its link {times} times a version")
    gone = found["workers_lost"] + found["workers_left"]
    if gone > 3:
        said.append(f"{gone} workers were lost or left, of three hosts that lost their link, left or died")
    if found["groups_made_again"] > gone * groups:
        said.append(f"{found['groups_made_again']} groups were made again: more than the lost hosts had")
    return said


def _sha(run: Path) -> str:
    return json.loads((run / run_folder.SUMMARY).read_text())["weights_sha256"]


def show(found: dict[str, Any]) -> None:
    """The table, and the verdict."""
    table = Table("seconds", "after iteration", "event", "rollout workers then", "images/s then")
    for each in found["moments"]:
        moment = Moment(**each)
        table.add_row(
            f"{moment.seconds:.0f}", str(moment.iteration), moment.event, str(moment.workers),
            f"{moment.images_per_second:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for host, times in found["copies_per_version_and_host"].items():
        console.print(
            f"{host}: {times:.2f} times the weights' {found['weights_bytes'] / 1e6:.1f} MB a version"
        )
    console.print(
        f"workers lost: {found['workers_lost']}; left in peace: {found['workers_left']}; "
        f"groups made again: {found['groups_made_again']}; {found['seconds']:.0f} s in all",
        f"weights_sha256={found['weights_sha256']}, undisturbed {found['weights_sha256_local']}",
        *(found["failures"] or ["as it has to be"]), sep="\n", soft_wrap=True, highlight=False,
    )  # fmt: skip


def main() -> int:
    folder = RESULT.with_suffix("").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        found = rehearse(folder, int(os.environ.get(ITERATIONS, "60")))
    except Unavailable as reason:
        print(f"skipped: {reason}")
        write_text(RESULT, json.dumps({"skipped": str(reason)}) + "\n")
        return 0
    except Failed as error:
        print(f"failed: {error}", file=sys.stderr)
        write_text(RESULT, json.dumps({"failures": [str(error)]}) + "\n")
        return 1
    write_text(RESULT, json.dumps(found, indent=2) + "\n")
    show(found)
    return bool(found["failures"])


if __name__ == "__main__":
    sys.exit(main())
