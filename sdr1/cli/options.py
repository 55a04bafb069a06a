"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdr1.base.errors import UserError

MOST_SEED = 2**63 - 1
MOST_ROW_SEED = 9_000_000_000_000
"""As `sdr1.config.evaluation` has it, whose libraries a help text does not wait for."""
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, or a preset's name, e.g. sandbox.yaml")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Fields to change, e.g. learner.learning_rate=2e-5"),
]
Local = Annotated[bool, typer.Option("--local", help="One process, no Ray.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="Ray cluster to join; without it Ray starts on this machine."),
]


def one_place(local: bool, ray_address: str | None) -> None:
    """Raise UserError for a cluster's address beside `--local`."""
    if local and ray_address:
        raise UserError(
            f"--ray-address: {ray_address!r} with --local: a local run has no cluster; drop one of them"
        )


def different(seeds: list[int] | None, default: list[int]) -> list[int]:
    """The seeds that are given, or the default.

    Raises:
        UserError: one is given twice, and would count twice in a mean.
    """
    twice = next((seed for seed in seeds or () if (seeds or []).count(seed) > 1), None)
    if twice is not None:
        raise UserError(f"--seed: {twice}: given twice; give each seed once")
    return seeds or default
