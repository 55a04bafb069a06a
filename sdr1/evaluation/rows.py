"""What an evaluation draws: rows with a prompt, a seed and a sampler each, and the batches they are drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sampler:
    """How a judged model draws: a diffusers scheduler class, its steps, guidance and eta (0: deterministic DDIM)."""

    scheduler: str = "DDIMScheduler"
    steps: int = 8
    guidance_scale: float = 1.5
    eta: float = 0.0


@dataclass(frozen=True)
class Row:
    """One image to draw."""

    id: str
    """Unique in the evaluation; also the image's path under `images/`, without suffix."""
    prompt: str
    seed: int
    """Of the initial noise, drawn on the CPU."""
    sampler: Sampler
    width: int
    height: int
    facts: dict[str, Any] = field(default_factory=dict)
    """What the protocol knows of the prompt, as plain JSON data: its category, its GenEval metadata."""

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def batches(rows: Sequence[Row], size: int) -> list[tuple[Row, ...]]:
    """Rows of equal sampler and size, `size` at a time.

    A function of the row list alone: the last bits of a picture depend on the batch it is drawn in, so a resumed
    evaluation has to draw in the same batches.
    """
    kinds: dict[tuple, list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.sampler, row.width, row.height), []).append(row)
    return [
        tuple(kind[start : start + size]) for kind in kinds.values() for start in range(0, len(kind), size)
    ]
