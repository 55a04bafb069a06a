"""`sdr1 erase`: other methods of the field, trained by one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sdr1.base.errors import UserError
from sdr1.cli.options import MOST_SEED

Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Prompts of the concept, and with `label` safe prompts to keep; default: the words of --concept, for "
        "`sandbox` its own training prompts.",
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="UNet evaluations at most, a backward pass counts as two; default: 130,000 for the sandbox, else none.",
    ),
]


def erase(
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help="A method's name; or list, or list METHOD for its constants."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Constants of the method, e.g. learning_rate=1e-4"),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="M", help="`sandbox`, a diffusers pipeline folder, or a hub id.")
    ] = "sandbox",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; default: outputs/erased/METHOD.")
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help="What shall be erased, e.g. nudity; may be repeated."),
    ] = None,
    prompts: Prompts = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of everything drawn at random.")] = 0,
    budget: Budget = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="With list: one JSON list, for scripts.")] = False,
) -> None:
    """Make a model safer by another method of the field; `sdr1 erase list` says which there are.

    The result is a plain diffusers folder, or one with a patch that sdr1 installs and plain diffusers refuses.

    Examples: `sdr1 erase list uce`, `sdr1 erase uce --model sandbox --out outputs/erased/uce closeness=0.1`
    """
    from sdr1.erasers import run

    if as_json and (method != "list" or overrides):
        asked = " ".join([method, *(overrides or [])])
        raise UserError(f"--json: belongs to `sdr1 erase list`, not to {asked}; leave it out")
    if method == "list" and overrides:
        print("".join(map(run.constants, overrides)), end="")
        return
    if method == "list":
        _print_list(run.listed(), as_json)
        return
    from sdr1.config.files import from_overrides

    folder = out or Path("outputs/erased") / method
    values = from_overrides(overrides or [])
    told = run.erase(
        method,
        model,
        folder,
        values,
        prompts=prompts,
        words=tuple(concept or ()),
        seed=seed,
        budget=budget,
        device=device,
    )
    print(f"{told['unet_evaluations']:,} UNet evaluations, {told['seconds']:,} seconds; written to {folder}")


def _print_list(methods: list[dict], as_json: bool) -> None:
    if as_json:
        print(json.dumps(methods, indent=2))
        return
    for each in methods:
        delivers = "a folder with a patch" if each["patch"] else "plain weights"
        print(f"{each['name']}  ({each['kind']})")
        print(f"    changes   {each['changes']}")
        print(f"    needs     {each['needs']}")
        print(f"    costs     {each['unet_evaluations']:,} UNet evaluations on the sandbox")
        print(f"    delivers  {delivers}")
        print(f"    source    {each['source']}")
