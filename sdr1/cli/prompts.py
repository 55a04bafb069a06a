"""`sdr1 prompts`: make prompts to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdr1.cli.options import MOST_SEED

app = typer.Typer(no_args_is_help=True, help="Make prompts to train on.")


@app.command("compose")
def compose(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .jsonl file to write.")],
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="Prompts, all different.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Another seed, other prompts.")] = 0,
) -> None:
    """Write safe prompts that ask for objects, colours, counts and positions, to keep a model's abilities in training.

    Example: `sdr1 prompts compose --count 5000 --seed 1 data/compose.jsonl`
    """
    from sdr1.prompts.compose import write

    print(write(out, count, seed))
