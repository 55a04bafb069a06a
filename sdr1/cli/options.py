"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MOST_SEED = 2**63 - 1
MOST_ROW_SEED = 9_000_000_000_000
"""As `sdr1.config.evaluation` has it, whose libraries a help text does not wait for."""
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/sandbox.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Fields to change, e.g. learner.learning_rate=2e-5"),
]
Local = Annotated[bool, typer.Option("--local", help="One process, no Ray.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="Ray cluster to join; without it Ray starts on this machine."),
]
