"""The commands in the README, the docs and the help texts: the command line takes each, and its settings exist."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from sdr1 import cli
from sdr1.config.evaluation import read
from sdr1.config.files import from_overrides, load
from sdr1.erasers.methods import METHODS
from sdr1.erasers.run import settings_of
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.studies import demo

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster/README.md", *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
MISSING = [kind for kind in typer.BadParameter.__subclasses__() if kind.__name__ == "MissingParameter"]
APP: Any = typer.main.get_command(cli.app)


def blocks(text: str) -> Iterator[str]:
    """The lines of indented and fenced code, those that go on joined."""
    code = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    code += re.findall(r"^(?: {4,}.*\n)+", text, re.MULTILINE)
    for block in code:
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def commands(command: Any) -> Iterator[Any]:
    """A group's commands, and those of the groups in it."""
    for each in getattr(command, "commands", {}).values():
        yield from commands(each) if hasattr(each, "commands") else (each,)


def found(program: str) -> dict[str, bool]:
    """Commands of a program, and whether they stand in a block: one in a sentence may lack arguments."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    helps = "\n".join(each.help or "" for each in commands(APP))
    inline = [part for text in (*pages, helps) for part in re.findall(rf"`({program} [^`\n]+)`", text)]
    lines = [line for text in pages for line in blocks(text)]
    at = rf"(?:^|(?<=-- )){program} (?!\.\.\.)[^|]+"
    return dict.fromkeys(inline, False) | {part: True for line in lines for part in re.findall(at, line)}


SDR1 = {line: whole for line, whole in found("sdr1").items() if "$(" not in line and "..." not in line}


@pytest.mark.parametrize("line", SDR1)
def test_the_command_line_takes_every_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, words = APP, shlex.split(line.partition(" > ")[0], comments=True)[1:]
    while hasattr(command, "commands"):
        assert words, "names a command"
        assert words[0] in command.commands
        command, words = command.commands[words[0]], words[1:]
    lacks = MISSING if not SDR1[line] else ()
    with contextlib.suppress(*lacks):
        check_settings(command.name, command.make_context("sdr1", words).params)


def check_settings(command: str, given: dict[str, Any]) -> None:
    overrides = given.get("overrides") or []
    if command in ("demo", "ablation"):
        load(demo.PRESET, overrides)
    elif command == "erase" and given["method"] != "list":
        settings_of(METHODS[given["method"]], False, from_overrides(overrides))
    elif given.get("protocol") in PROTOCOLS:
        read(from_overrides(overrides))
    elif given.get("config") and given["config"].suffix == ".yaml":
        load(given["config"], overrides)


def test_there_are_as_many_commands_as_it_seems() -> None:
    assert sum(SDR1.values()) > 30
    assert {command.name for command in commands(APP)} <= {word for line in SDR1 for word in line.split()}


def test_make_has_every_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {line.split()[1] for line in found("make")}
    assert len(named) > 10
    assert named <= targets
