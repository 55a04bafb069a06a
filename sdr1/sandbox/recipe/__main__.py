"""Runs one stage of the recipe in this process on one thread: `python -m sdr1.sandbox.recipe STAGE OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from .common import write_json


def main(stage: str, out: Path) -> None:
    from . import clip, oracle, quality, unet, vae

    torch.set_num_threads(1)
    makers = {
        "vae": vae.build_vae,
        "oracle": oracle.build_oracle,
        "clip": clip.build_clip,
        "unet": unet.build_unet,
        "quality": quality.measure,
    }
    work = out / ".build"
    write_json(makers[stage](out, work), work / f"{stage}.json")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
