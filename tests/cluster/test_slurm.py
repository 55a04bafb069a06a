"""cluster/slurm.sh: its directives by SLURM's grammar, what it starts by Ray's and sdr1's own parsers, with SLURM's
commands replaced by ones that write down how they were called."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from sdr1.base.errors import UserError
from sdr1.cli import app
from sdr1.config.files import load

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "cluster" / "slurm.sh").read_text()
JOB = [str(ROOT / "configs" / "sandbox.yaml"), "run.directory=/shared/outputs/a b", "learner.device=cuda"]

USAGE: Any = typer.BadParameter.__base__
COUNT = r"[1-9]\d*"
GRAMMAR = {
    "job-name": r"[\w.-]+",
    "nodes": COUNT,
    "ntasks-per-node": COUNT,
    "gpus-per-node": COUNT,
    "cpus-per-task": COUNT,
    "exclusive": "",
    "time": r"(\d+-)?\d{1,2}:\d{2}:\d{2}",
    "requeue": "",
    # To the script itself: srun's tasks would end by it.
    "signal": r"B:[A-Z0-9]+@\d+",
    # A job that goes on keeps what it said before.
    "open-mode": "append",
}
"""Of sbatch's manual, the options that the script uses."""


def directives(script: str) -> dict[str, str]:
    """What sbatch reads: the lines before the first command. One behind it would be passed over without a word."""
    ahead, _, behind = script.partition("\nset ")
    assert "#SBATCH" not in behind
    found: dict[str, str] = {}
    for line in re.findall(r"^#SBATCH.*$", ahead, re.MULTILINE):
        given = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert given, line
        name, value = given[1], given[2] or ""
        assert name in GRAMMAR, line
        assert re.fullmatch(GRAMMAR[name], value), line
        assert name not in found, line
        found[name] = value
    assert found["ntasks-per-node"] == "1", "one Ray a machine"
    assert {"exclusive", "requeue", "signal", "open-mode"} <= found.keys()
    return found


def started(script: str, folder: Path, warned: str = "") -> tuple[list[str], dict[str, str], int]:
    """How the script calls srun on three nodes, the environment it gives, and its own exit code; `warned` is the signal
    that it gets meanwhile."""
    tools = folder / "bin"
    tools.mkdir(parents=True)
    warn = f"kill -{warned} $PPID; sleep 0.5; " if warned else ""
    for name, body in {
        "scontrol": f"""case "$*" in
            "show hostnames node[7-9]") printf "node7\\nnode8\\nnode9\\n" ;;
            "requeue 1") touch {folder}/requeued ;;
            *) exit 1 ;;
        esac""",
        "srun": f'printf "%s\\0" "$@" > {folder}/called; env -0 > {folder}/given; {warn}exit 3',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(stat.S_IRWXU)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_NUM_NODES": "3"}
    slurm |= {"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "1"}
    path = folder / "slurm.sh"
    path.write_text(script)
    # PATH holds what the script may use, so that a misspelled command is not found.
    done = subprocess.run(
        ["bash", str(path), *JOB], env={"PATH": f"{tools}:/usr/bin:/bin", **slurm}, capture_output=True, text=True
    )  # fmt: skip
    assert (folder / "called").exists(), done.stderr
    given = dict(each.partition("=")[::2] for each in (folder / "given").read_text().split("\0"))
    return (folder / "called").read_text().split("\0")[:-1], given, done.returncode


def check(script: str, folder: Path) -> None:
    found = directives(script)
    call, given, code = started(script, folder / "runs")
    assert code == 3, "the job's exit code is the run's"
    assert not (folder / "runs" / "requeued").exists()
    started(script, folder / "warned", found["signal"].removeprefix("B:").partition("@")[0])
    assert (folder / "warned" / "requeued").exists(), "before its time is over the job queues again"
    assert given["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch(r"[0-9a-f]{64}", given["RAY_AUTH_TOKEN"])
    options, tool, kind, *rest = call
    assert (options, tool, kind) == ("--kill-on-bad-exit=1", "ray", "symmetric-run")
    middle = rest.index("--")
    check_ray(rest[:middle])
    entry = rest[middle + 1 :]
    assert entry[:2] == ["bash", "-c"]
    shell, name, arguments = entry[2], entry[3], entry[4:]
    commands = re.findall(r'sdr1 (\w+) "\$@"', shell)
    assert commands == ["doctor", "train"]
    assert shell.count("&&") == 1
    assert name == "sdr1"
    for command in commands:
        parse(command, arguments)
    assert arguments[:3] == JOB, "words with blanks stay one"
    config = load(arguments[0], [each for each in arguments if "=" in each])
    assert config.run.resume == "auto"


def check_ray(arguments: list[str]) -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    own = symmetric_run.make_context("symmetric-run", list(arguments), resilient_parsing=True).params
    assert (own["address"], own["min_nodes"]) == ("node7:6379", 3)
    given = start.make_context("start", curate_and_validate_ray_start_args(list(arguments))).params
    assert (given["num_cpus"], given["num_gpus"]) == (8, 1)


def parse(command: str, arguments: list[str]) -> None:
    whole: Any = typer.main.get_command(app)
    context = whole.commands[command].make_context(command, list(arguments))
    assert context.params["ray_address"] == "auto"


def test_the_script_is_what_slurm_ray_and_sdr1_understand(tmp_path: Path) -> None:
    check(SCRIPT, tmp_path)
    assert os.access(ROOT / "cluster" / "slurm.sh", os.X_OK)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("#SBATCH --nodes=3", "#SBATCH --node=3"),
        ("#SBATCH --nodes=3", "#SBATCH --nodes=three"),
        ("#SBATCH --requeue", "# SBATCH --requeue\n#SBATCH--requeue"),
        ("#SBATCH --exclusive\n", ""),
        ("#SBATCH --requeue\n", ""),
        ("--signal=B:USR1", "--signal=USR1"),
        ("--signal=B:USR1", "--signal=B:USR2"),
        ("--open-mode=append", "--open-mode=truncate"),
        ("' USR1", ""),
        ("trap 'scontrol requeue", "trap 'scontrol requeu"),
        ('requeue "$SLURM_JOB_ID"', 'requeue "$SLURM_JOBID_"'),
        ("set -euo pipefail", "set -euo pipefail\n#SBATCH --mem=0"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        ("symmetric-run", "symetric-run"),
        ("--num-gpus", "--gpus"),
        ('"$SLURM_JOB_NUM_NODES"', '"$SLURM_NNODES_OF_JOB"'),
        ("--ray-address auto", "--address auto"),
        ("run.resume=auto", "run.resume=yes"),
        ('sdr1 "$@" --ray', "sdr1 $@ --ray"),
        ("sdr1 doctor", "sdr1 docter"),
        ("wait $!", "wait"),
        ("sed -n 1p)", "sed -n 1p"),
    ],
)
def test_a_mistake_in_the_script_is_caught(right: str, wrong: str, tmp_path: Path) -> None:
    assert SCRIPT.count(right) >= 1
    with pytest.raises((AssertionError, KeyError, click.ClickException, USAGE, UserError)):
        check(SCRIPT.replace(right, wrong), tmp_path)
