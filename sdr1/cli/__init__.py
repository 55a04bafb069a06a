"""The command line, a module for each group of commands. Heavy imports wait inside the commands."""

from __future__ import annotations

import errno
import logging
import re
import sys
from typing import Annotated, Any

import typer

from sdr1 import __version__
from sdr1.base.errors import Terminated, TrainingError, UserError
from sdr1.base.extras import missing
from sdr1.cli import config, prompts, sandbox
from sdr1.cli.compare import compare
from sdr1.cli.erase import erase
from sdr1.cli.evaluation import evaluate, judge, report
from sdr1.cli.training import doctor, export, plan, sample, train

app = typer.Typer(
    help="Make a text-to-image diffusion model safer with distributed online RL.",
    epilog="Start here: sdr1 sandbox demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (train, erase, compare, report, evaluate, judge, plan, doctor, export, sample):
    app.command()(command)
app.add_typer(config.app, name="config")
app.add_typer(prompts.app, name="prompts")
app.add_typer(sandbox.app, name="sandbox")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"sdr1 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_Usage: Any = typer.BadParameter.__base__
_MENDABLE = {
    errno.EACCES: "choose another place, or change its permissions",
    errno.EDQUOT: "make room, or choose another place",
    errno.EEXIST: "choose another place",
    errno.EISDIR: "give a file",
    errno.ELOOP: "give the real path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOENT: "give one that is there",
    errno.ENOSPC: "make room, or choose another place",
    errno.ENOTDIR: "give a folder",
    errno.ENOTEMPTY: "choose another place",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
}
"""What a file system refuses whatever the command does, and the fix."""
_FULL = (errno.EDQUOT, errno.ENOSPC, errno.EROFS)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 the run had to stop, 2 the user can mend it, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    # It warns of every attempt that it makes again; what comes of them is said once, by who asked.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        return app(arguments, prog_name="sdr1", standalone_mode=False) or 0
    except _Usage as error:
        return _fail(_usage(error), 2)
    except UserError as error:
        return _fail(str(error), 2)
    except TrainingError as error:
        return _fail(str(error), 1)
    except Terminated as stop:
        print(f"stopped by SIGTERM; {stop}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        told = missing(error.name or "", "sdr1")
        if told is None:
            raise
        return _fail(str(told), 2)
    except OSError as error:
        place = error.filename2 or error.filename or "disk"
        if error.errno not in _MENDABLE or (place == "disk" and error.errno not in _FULL):
            raise
        return _fail(f"{_short(str(place))}: {error.strerror}; {_MENDABLE[error.errno]}", 2)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _usage(error: Any) -> str:
    """A usage error as field, value and fix; empty where the help was printed in place of one."""
    told = error.format_message().rstrip(".")
    if wrong := re.fullmatch(r"Invalid value for '(.+?)': (?:Value error, )?(.*)", told, re.DOTALL):
        field, problem = wrong.groups()
        given = error.__cause__.errors()[0]["input"] if hasattr(error.__cause__, "errors") else None
        value = "" if given is None or repr(given) in problem else f"{_short(repr(given))}: "
        told = f"{field}: {value}{problem}"
    command = error.ctx.command_path if error.ctx else "sdr1"
    return f"{told}; see `{command} --help`" if told else ""


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:150]} ... ({len(text)} letters)"


def _fail(told: str, code: int) -> int:
    line = " ".join(told.split())
    # What a terminal would obey is shown, not sent.
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
    if shown:
        print(f"error: {shown}", file=sys.stderr)
    return code
