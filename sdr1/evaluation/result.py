"""What an evaluation has found, as `result.json` holds it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

Unit = Literal["share", "images", "cosine", "distance"]
"""A share of images or prompts in [0, 1], a number of images, a cosine or a difference of cosines, or a distance."""
Better = Literal["lower", "higher", ""]
"""Which way a figure is better, empty where neither is."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Figure(_Part):
    """A measured number, None where there was nothing to measure; `low` and `high` bound its 95 % interval, `n` is
    the number of pictures behind it; a difference may have the `p` of its test."""

    value: FiniteFloat | None
    unit: Unit
    better: Better = ""
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int | None = None
    p: FiniteFloat | None = None


class Paired(_Part):
    """How a figure differs from another model's on the same prompts and seeds, with the bounds of its 95 % interval,
    which one prompt alone does not have; `p` is of a two-sided test."""

    difference: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    p: FiniteFloat
    n: int


class Result(_Part):
    """The content of `result.json`; `paired` are tests against the model `against`."""

    protocol: str
    model: str
    figures: dict[str, Figure]
    against: str = ""
    paired: dict[str, Paired] = {}
    provenance: dict[str, Any] = {}
