"""`sdr1 config`: look at a config before it runs."""

from __future__ import annotations

import json

import typer

from sdr1.cli.options import ConfigFile, Overrides

app = typer.Typer(no_args_is_help=True, help="Look at a config before it runs.")


@app.command("show")
def show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved config as YAML, every field with its meaning and where its value comes from.

    That is a default, a file of the chain that CONFIG extends, or an override. What is printed can be saved and run.

    Example: `sdr1 config show configs/sandbox.yaml rollout.group_size=24`
    """
    from sdr1.config.files import load_with_sources
    from sdr1.config.text import annotated_yaml

    print(annotated_yaml(*load_with_sources(config, overrides or ())), end="")


@app.command("check")
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Validate a config and print the arithmetic of one iteration: groups, images, updates, UNet evaluations.

    Example: `sdr1 config check configs/sandbox.yaml learner.groups_per_update=3`
    """
    from sdr1.config.files import load
    from sdr1.planning.counts import batch_arithmetic

    rows = batch_arithmetic(load(config, overrides or ()))
    width = max(len(name) for name, _ in rows)
    for name, arithmetic in rows:
        print(f"{name:<{width}}  {arithmetic}")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of a config, for editors and scripts.

    Example: `sdr1 config schema > sdr1.schema.json`
    """
    from sdr1.config import files

    print(json.dumps(files.schema(), indent=2))
