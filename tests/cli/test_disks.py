"""Disks that are read-only or full: every command that writes ends in one line, with nothing half-written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdr1 import cli

SMOKE = str(Path(__file__).parents[2] / "configs" / "sandbox-smoke.yaml")
QUICK = ["iterations=1", "policy.steps=3", "policy.noise_window=[0,2]"]
JUDGED = ["images=1", "sampler.steps=1", "limit=3", "--local"]
COMMANDS = {
    "train": ["train", SMOKE, "--local", "run.directory=OUT", "tracking.enabled=false", *QUICK],
    "evaluate": ["evaluate", "sandbox", "--out", "OUT", *JUDGED],
    "judge": ["judge", "sandbox", "--images", "SOURCE/done", "--out", "OUT", "--local"],
    "report": ["report", "SOURCE/done", "SOURCE/run", "--out", "OUT"],
    "sample": ["sample", "sandbox", "--prompt", "a ring", "--seed", "0", "--steps", "1", "--out", "OUT"],
    "export": ["export", "SOURCE/run", "--out", "OUT"],
    "kohya": ["export", "SOURCE/run", "--part", "kohya", "--out", "OUT"],
    "erase": ["erase", "uce", "--out", "OUT"],
    "demo": ["sandbox", "demo", "--out", "OUT", "tracking.enabled=false", *QUICK],
    "ablation": ["sandbox", "ablation", "--only", "steered", "--seed", "1", "--local", "--out", "OUT", "iterations=1"],
    "draw": ["sandbox", "draw", "--out", "OUT/world.png"],
    "compose": ["prompts", "compose", "OUT/prompts.jsonl"],
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    run = ["train", SMOKE, "--local", f"run.directory={folder / 'run'}", "tracking.enabled=false", *QUICK]
    assert cli.main(run) == 0
    assert cli.main(["evaluate", "sandbox", "--out", str(folder / "done"), *JUDGED]) == 0
    return folder


@pytest.fixture(params=["read-only", "full"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, which only root can make."""
    place = tmp_path / "disk"
    place.mkdir()
    options = "ro" if request.param == "read-only" else "size=256k"
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=False).returncode
    ):
        pytest.skip("needs the right to mount a file system")
    try:
        if request.param == "full":
            with open(tmp_path / "disk" / "others", "wb", buffering=0) as file:
                # What is left takes folders and one of the smallest files.
                file.write(bytes(256 * 1024 - 2 * 4096))
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_takes_nothing_is_one_line(command, disk, source, capfd, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if command == "demo":
        # It would start Ray.
        from sdr1.studies import demo

        train = demo.train
        monkeypatch.setattr(demo, "train", lambda config: train(config, local=True))
    given = [
        word.replace("OUT", str(disk / "out")).replace("SOURCE", str(source)) for word in COMMANDS[command]
    ]
    capfd.readouterr()
    assert cli.main(given) in (1, 2)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert str(disk / "out") in said[0]
    assert "; " in said[0] or ": " in said[0]
    assert not list(disk.rglob("*.sdr1-partial"))
