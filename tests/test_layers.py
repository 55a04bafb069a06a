"""Which rooms may know of which: Ray, MLflow and the method's mathematics stay where the design puts them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "sdr1").rglob("*.py"))
}


def imported(tree: ast.AST, name: str, package: bool) -> Iterator[str]:
    """Dotted names that the nodes below `tree` import; a module that is taken from its package counts as itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".") if package else name.split(".")[:-1]
            origin = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
            origin = ".".join(filter(None, (origin, node.module)))
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield whole if whole in FILES else origin


def imports(name: str, *, at_start: bool = False) -> set[str]:
    """What a module imports, or only what it imports as soon as it is imported itself."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    package = FILES[name].name == "__init__.py"
    if not at_start:
        return set(imported(tree, name, package))
    # Functions run later, and what stands under `if TYPE_CHECKING:` never does.
    late = (ast.FunctionDef, ast.AsyncFunctionDef, ast.If)
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found |= set(imported(ast.Module([child], []), name, package))
            elif not isinstance(child, late):
                waiting.append(child)
    return found


def users(library: str) -> set[str]:
    return {name for name in FILES if any(f"{each}.".startswith(f"{library}.") for each in imports(name))}


def test_only_distributed_imports_ray() -> None:
    found = users("ray")
    assert found
    assert {name for name in found if not name.startswith("sdr1.distributed.")} == set()


def test_only_tracking_imports_mlflow() -> None:
    assert users("mlflow") == {"sdr1.tracking"}


def test_the_core_can_be_imported_without_ray() -> None:
    """What places work on a cluster asks for `sdr1.distributed` when it does so, not before."""
    assert users("sdr1.distributed")
    eager = {
        name
        for name in FILES
        if not name.startswith("sdr1.distributed")
        and any(each.startswith("sdr1.distributed") for each in imports(name, at_start=True))
    }
    assert eager == set()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("sdr1.method")])
def test_the_method_is_mathematics_on_tensors(name: str) -> None:
    assert {each.split(".")[0] for each in imports(name)} <= {"__future__", "math", "torch"}


def test_imports_point_one_way() -> None:
    """Modules in the order of their imports exist: none needs, at start, one that needs it."""
    graph = {name: imports(name, at_start=True) & FILES.keys() - {name} for name in FILES}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == FILES.keys()
    assert order.index("sdr1.types") < order.index("sdr1.policy") < order.index("sdr1.train")
