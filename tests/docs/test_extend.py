"""The snippets of docs/extend.md, run in the order of the page in one folder, as a reader would."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from sdr1 import cli

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w.]+)`:\s*\Z")


def snippets(text: str) -> list[tuple[str, str, str | None]]:
    """Language, content, and the file that the words before introduce it as."""
    found = []
    for fence in _FENCE.finditer(text):
        named = _FILE.search(text[: fence.start()])
        found.append((fence[1], fence[2], named and named[1]))
    return found


@pytest.mark.slow
def test_every_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    written, ran, commands = [], 0, 0
    try:
        for language, content, file in snippets((ROOT / "docs" / "extend.md").read_text(encoding="utf-8")):
            if file is not None:
                Path(file).write_text(content, encoding="utf-8")
                written.append(file)
            elif language == "python":
                exec(compile(content, "docs/extend.md", "exec"), {"__name__": "snippet"})
                ran += 1
            else:
                assert language == "sh", language
                for line in content.splitlines():
                    program, *arguments = shlex.split(line)
                    assert program == "sdr1", line
                    if arguments[0] == "train":
                        arguments.append("iterations=1")
                    assert cli.main(arguments) == 0, line
                    commands += 1
    finally:
        for name in ("my_reward", "my_judge"):
            sys.modules.pop(name, None)
    assert written == ["my_reward.py", "my_judge.py", "mine.jsonl"]
    assert (ran, commands) == (1, 9)
