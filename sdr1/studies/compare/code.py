"""The version of the code that a result follows from: a digest of a module and of all of sdr1 that it imports."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import sdr1

_ROOT = Path(sdr1.__file__).parent
_LIBRARIES = ("diffusers", "peft", "torch", "transformers")


def digest(modules: Iterable[str]) -> str:
    """Of these modules, of those that they import, and so on, and of the libraries that compute.

    Comments, docstrings and layout are no part of it.
    """
    reached = set[str]()
    left = list(modules)
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += _read(name)[1]
    found = hashlib.sha256()
    for name in sorted(reached):
        found.update(f"{name} {_read(name)[0]}\n".encode())
    for library in _LIBRARIES:
        found.update(f"{library} {version(library)}\n".encode())
    return found.hexdigest()


@cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's digest, and the modules of sdr1 that it imports, wherever in it."""
    file = _file(module)
    assert file is not None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # A name may be a module or something in one.
            imported |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        _drop_docstring(node)
    known = tuple(sorted(name for name in imported if name != module and _file(name)))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), known


def _drop_docstring(node: ast.AST) -> None:
    """And the texts that describe attributes, which stand alone too."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        node.body = [
            each
            for each in node.body
            if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        ]


def _file(module: str) -> Path | None:
    """A module's source, None of what is no module of sdr1."""
    first, *rest = module.split(".")
    if first != "sdr1":
        return None
    for path in (_ROOT.joinpath(*rest).with_suffix(".py"), _ROOT.joinpath(*rest, "__init__.py")):
        if path.is_file():
            return path
    return None
