"""What every benchmark shares: paired runs, and the JSON that `make bench` leaves."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdr1.base.files import write_text

SD_1_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""What Stable Diffusion 1.x's UNet2DConditionModel differs in from diffusers' defaults: 860 M parameters."""


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def report(name: str, over: str, pairs: list[tuple[float, float]], **more: Any) -> None:
    """Write `outputs/bench/NAME.json`: the median of numerator / denominator over paired runs, and further facts."""
    ratio = statistics.median(a / b for a, b in pairs)
    result = {
        "name": name,
        "ratio": ratio,
        "over": over,
        "runs": pairs,
        "machine": platform.processor() or platform.machine(),
        **more,
    }
    write_text(Path("outputs/bench") / f"{name}.json", json.dumps(result, indent=2) + "\n")
    print(f"{name}: {ratio:.3g} ({over})")
