"""`sdr1 sandbox build`: trains the sandbox's models again from nothing, stage by stage, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.files import refuse_foreign, write_text
from sdr1.base.process import end_with_parent
from sdr1.sandbox import WEIGHTS

STAGES = ("vae", "clip", "oracle", "reward", "unet", "quality")
_MARKER = "build.json"
"""The file by which sdr1 knows a folder that it builds weights in."""
# CLIP and the oracle also look at pictures after the VAE; the last stage only measures.
_WAVES = (("vae",), ("clip", "oracle"), ("unet", "reward"), ("quality",))


def build(out: Path | None = None, stages: Sequence[str] | None = None) -> None:
    """Train the stages into `out` (default: the package's weights folder), two processes at most, a thread each.

    A stage that is stopped goes on from its checkpoint in `out/.build`; one that is complete is not trained again.

    Raises:
        UserError: a stage has an unknown name, or `out` holds something else; nothing was written.
    """
    for stage in stages or ():
        if stage not in STAGES:
            raise UserError(f"--stage: {stage!r}: no such stage; use {', '.join(STAGES)}")
    if out is None:
        out = WEIGHTS
    else:
        refuse_foreign(out, _MARKER, "sandbox build", "--out")
        write_text(out / _MARKER, json.dumps({"stages": STAGES}, indent=2) + "\n")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        for wave in _WAVES:
            jobs = [pool.submit(_run, stage, out) for stage in wave if not stages or stage in stages]
            for job in jobs:
                print(*job.result(), flush=True)


def _run(stage: str, out: Path) -> tuple[str, dict[str, Any]]:
    from sdr1.base.process import prepare_process
    from sdr1.recipe.clip import build_clip
    from sdr1.recipe.common import write_json
    from sdr1.recipe.oracle import build_oracle
    from sdr1.recipe.quality import measure
    from sdr1.recipe.reward import build_reward
    from sdr1.recipe.unet import build_unet
    from sdr1.recipe.vae import build_vae

    prepare_process(1)
    work = out / ".build"
    recipes: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
        "vae": build_vae,
        "clip": build_clip,
        "oracle": build_oracle,
        "reward": build_reward,
        "unet": build_unet,
        "quality": measure,
    }
    report = recipes[stage](out, work)
    write_json(report, work / f"{stage}.json")
    return stage, report
