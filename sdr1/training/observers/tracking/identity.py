"""By what a run is known in MLflow before it has measured anything: its tags and the prompts that it trains on."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdr1 import __version__
from sdr1.base.records import Prompt
from sdr1.config.training import Config
from sdr1.prompts.stream import sources

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset

COMMAND = "sdr1.command"


def tags(config: Config) -> dict[str, str]:
    """By what runs are grouped and filtered, and the command that made this one."""
    found = {
        "sdr1.version": __version__,
        "sdr1.objective": config.learner.objective,
        "sdr1.base_model": config.policy.model,
        "sdr1.trainable": config.policy.trainable,
        COMMAND: shlex.join(["sdr1", *sys.argv[1:]]),
    }
    if commit := _commit():
        found["mlflow.source.git.commit"] = commit
    return found


def _commit() -> str:
    """Of the checkout that sdr1 runs from; empty where it is installed, also inside somebody's repository."""
    here = Path(__file__)

    def git(*words: str) -> str:
        asked = ["git", *words]
        return subprocess.run(
            asked, cwd=here.parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "HEAD") if shutil.which("git") and git("ls-files", here.name) else ""


def dataset(config: Config, prompts: Sequence[Prompt]) -> Dataset:
    """The prompts and their labels for MLflow; the digest is of these alone, whatever file they are from."""
    import mlflow.data
    import pandas
    from mlflow.data.code_dataset_source import CodeDatasetSource

    pairs = [(prompt.text, prompt.label) for prompt in prompts]
    names = ", ".join(source.path for source in sources(config))
    return mlflow.data.from_pandas(
        pandas.DataFrame(pairs, columns=["prompt", "label"]),
        source=CodeDatasetSource({"mlflow.source.name": names, "mlflow.source.type": "LOCAL"}),
        name="prompts",
        digest=hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16],
    )
