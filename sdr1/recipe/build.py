"""`sdr1 sandbox build`: trains the sandbox's models again from nothing, stage by stage, resumable."""

from __future__ import annotations

import json
import time
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
# Two chains of stages at a time. The second wave looks at pictures after the VAE; the last stage only measures.
_WAVES = ((("vae",), ("clip",)), (("unet",), ("oracle", "reward")), (("quality",),))


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
            for job in [pool.submit(_run, chain, stages or STAGES, out) for chain in wave]:
                job.result()


def _run(chain: Sequence[str], stages: Sequence[str], out: Path) -> None:
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
    for stage in chain:
        if stage in stages:
            began = time.monotonic()
            report = {**recipes[stage](out, work), "minutes": (time.monotonic() - began) / 60}
            write_json(report, work / f"{stage}.json")
            print(stage, report, flush=True)
