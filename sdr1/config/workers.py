"""How many workers a fleet has: a number, or bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from sdr1.base.section import Section

MOST_WORKERS = 10_000
"""Above this a number is a slip of the hand, not a wish."""


class Elastic(Section):
    """A fleet that follows what the cluster can give."""

    min: int = Field(1, ge=1, le=MOST_WORKERS, description="Workers that training waits for.")
    max: int = Field(
        ge=1, le=MOST_WORKERS, description="Workers asked for; those beyond `min` join when resources appear."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Elastic:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; use min <= max")
        return self


# A plain union would answer a mistake in {min, max} with "should be an integer".
Workers = Annotated[
    Annotated[int, Field(ge=1, le=MOST_WORKERS), Tag("int")] | Annotated[Elastic, Tag("Elastic")],
    Discriminator(lambda value: "Elastic" if isinstance(value, dict | Elastic) else "int"),
]


def bounds(workers: int | Elastic) -> Elastic:
    """Least and most workers; a plain number is both."""
    return workers if isinstance(workers, Elastic) else Elastic(min=workers, max=workers)
