"""Human Preference Score v2: which weights file belongs to a version, and the original's preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from sdr1.base.errors import UserError
from sdr1.base.extras import require

ARCHITECTURE = "ViT-H-14"
_REPOSITORY = "xswu/HPSv2"
MODELS = {"hps-v2.0": "v2.0", "hps-v2.1": "v2.1"}


def fetch(model: str, field: str) -> Path:
    """The weights file of `hps-v2.0` or `hps-v2.1` in the hub's cache, fetched if need be.

    Raises:
        UserError: it is not cached and the hub cannot be reached.
    """
    import warnings

    from huggingface_hub import hf_hub_download

    require("hpsv2", f"{field}.model: {model!r} without {field}.pretrained")
    with warnings.catch_warnings():
        # A library that hpsv2 imports has slips in its source: nothing that a user could mend.
        warnings.simplefilter("ignore")
        from hpsv2.utils import hps_version_map

    name = hps_version_map[MODELS[model]]
    try:
        return Path(hf_hub_download(_REPOSITORY, name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{field}.model: {model!r}: {name} cannot be fetched from {_REPOSITORY}; put the file here and set "
            f"{field}.pretrained to it"
        ) from error


def preprocess(settings: dict[str, Any]) -> v2.Compose:
    """uint8 (N, 3, H, W) to the encoder's input, as hpsv2 does: scaled to floats first, then resized.

    So bicubic overshoot is neither rounded nor clamped, unlike in open_clip's own preprocessing.
    """
    size = settings["size"]
    size = size if isinstance(size, int) else size[0]
    return v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
            v2.Normalize(settings["mean"], settings["std"]),
        ]
    )
