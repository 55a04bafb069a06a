"""How large a file and a function may be, and what lies at the root of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import sdr1

ROOT = Path(sdr1.__file__).parent
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 400, 60


def _too_large() -> set[str]:
    found = set()
    for path in ROOT.rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if len(text.splitlines()) > LINES_OF_A_FILE:
            found.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                if node.end_lineno - first >= LINES_OF_A_FUNCTION:
                    found.add(f"{name}: {node.name}")
    return found


def test_no_file_and_no_function_is_too_large() -> None:
    assert _too_large() == set()


def test_every_module_lies_in_a_room() -> None:
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
