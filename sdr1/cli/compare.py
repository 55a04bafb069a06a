"""`sdr1 compare`: methods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="YAML: methods, seeds, budget; default: all methods on the sandbox."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to write; default: outputs/compare, of --tune outputs/tries."
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Make the methods' tries on the tuning split, and tries.json.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of every cell: cpu, cuda or cuda:N.")] = "cpu",
    processes: Annotated[
        int, typer.Option(min=1, help="Cells made at once: one a core, or several on one GPU.")
    ] = 2,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and make nothing.")
    ] = False,
) -> None:
    """Train and judge methods under one budget, one sampler and one judge; goes on where it was stopped.

    Without FILE: every method of `sdr1 erase list` and the trainings of sdr1 itself. A method whose settings, code or
    base changed is made again, all others are taken as they are.

    Example: `sdr1 compare --out outputs/compare`
    """
    from sdr1.studies.compare import run

    folder = out or Path("outputs/tries" if tune else "outputs/compare")
    if dry_run:
        print(*run.plan(file, folder, tune=tune, device=device, processes=processes), sep="\n")
    else:
        run.run(file, folder, tune=tune, device=device, processes=processes)
