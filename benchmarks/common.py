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
        "pairs": pairs,
        "machine": platform.processor() or platform.machine(),
        **more,
    }
    write_text(Path("outputs/bench") / f"{name}.json", json.dumps(result, indent=2) + "\n")
    print(f"{name}: {ratio:.3g} ({over})")
