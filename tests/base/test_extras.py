"""A library of an extra that is not installed: one line, before anything is written; training needs none of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sdr1 import cli
from sdr1.base.extras import EXTRAS

ROOT = Path(__file__).parents[2]
WITHOUT = f"import sys; sys.modules |= dict.fromkeys({list(EXTRAS)}); from sdr1.cli import main; sys.exit(main(sys.argv[1:]))"


def without_extras(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`sdr1 ARGUMENTS` in `folder`, in a process that has none of the extras' libraries."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip


def test_every_library_of_an_extra_is_known():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        (re.split(r"[<>=\[]", each)[0].lower().removesuffix("-learn"), extra)
        for extra in extras.keys() - {"all", "dev"}
        for each in extras[extra]
    }
    assert named == set(EXTRAS.items())


@pytest.mark.slow
def test_training_needs_no_extra(tmp_path):
    smoke = str(ROOT / "configs" / "sandbox-smoke.yaml")
    small = [
        "iterations=1",
        "prompts.per_iteration=1",
        "rollout.group_size=2",
        "policy.steps=2",
        "policy.noise_window=[0,1]",
    ]
    refused = without_extras(tmp_path, "train", smoke, "--local", *small)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: tracking.enabled: true: needs mlflow; pip install 'sdr1[tracking]'\n"
    assert not list(tmp_path.iterdir()), "nothing was written"
    trained = without_extras(tmp_path, "train", smoke, "--local", *small, "tracking.enabled=false")
    assert trained.returncode == 0, trained.stderr
    assert "weights_sha256=" in trained.stdout


def test_a_command_that_needs_an_extra_says_which(monkeypatch, capsys):
    def absent(*_, **__):
        raise ModuleNotFoundError("No module named 'umap.plot'", name="umap.plot")

    monkeypatch.setattr(cli, "app", absent)
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err == "error: sdr1: needs umap; pip install 'sdr1[evaluation]'\n"


def test_any_other_library_that_is_missing_is_no_users_mistake(monkeypatch):
    def absent(*_, **__):
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(cli, "app", absent)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["evaluate"])
