"""The command line, a module for each group of commands. Heavy imports wait inside the commands."""

from __future__ import annotations

import logging
import sys

import typer

from sdr1.cli import config, prompts, sandbox
from sdr1.cli.evaluation import evaluate, judge, report
from sdr1.cli.training import export, plan, sample, train
from sdr1.errors import Terminated, TrainingError, UserError

app = typer.Typer(
    help="Make a text-to-image diffusion model safer with distributed online RL.",
    epilog="Start here: sdr1 sandbox demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (train, report, evaluate, judge, plan, export, sample):
    app.command()(command)
app.add_typer(config.app, name="config")
app.add_typer(prompts.app, name="prompts")
app.add_typer(sandbox.app, name="sandbox")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 the run had to stop, 2 the user can mend it, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        app(arguments, prog_name="sdr1")
    except UserError as error:
        return _fail(error, 2)
    except TrainingError as error:
        return _fail(error, 1)
    except Terminated as stop:
        print(f"stopped by SIGTERM; {stop}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
