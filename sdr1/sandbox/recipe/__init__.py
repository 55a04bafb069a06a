"""The recipe that makes the sandbox's weights from nothing: `build`, stage by stage, each resumable."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# Stages of a row run side by side, one process and one core each; a row waits for the one above.
ROWS = (("vae",), ("oracle", "clip"), ("unet",), ("quality",))
STAGES = tuple(stage for row in ROWS for stage in row)


def build(out: Path, stages: Iterable[str] | None = None) -> Path:
    """Makes `out/pipeline`, `out/clip`, `out/oracle.safetensors` and `out/report.json`, the measured quality.

    Runs all of `STAGES` or the given ones. A finished stage is skipped and a stopped one resumes from its last
    checkpoint in `out/.build`; delete that folder to begin anew. Seeds and numbers of steps are fixed.
    Raises ValueError on an unknown stage and RuntimeError if a stage fails.
    """
    chosen = set(STAGES if stages is None else stages)
    if unknown := chosen - set(STAGES):
        raise ValueError(f"stages: {', '.join(sorted(unknown))}: use {', '.join(STAGES)}")
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        todo = [stage for stage in row if stage in chosen and not (work / f"{stage}.json").exists()]
        running = [subprocess.Popen([sys.executable, "-m", __name__, stage, str(out)]) for stage in todo]
        failed = [stage for stage, process in zip(todo, running, strict=True) if process.wait() != 0]
        if failed:
            raise RuntimeError(f"stage {', '.join(failed)} failed; run the same command again to resume")
    report = {
        stage: json.loads((work / f"{stage}.json").read_text())
        for stage in STAGES
        if (work / f"{stage}.json").exists()
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return out / "report.json"
