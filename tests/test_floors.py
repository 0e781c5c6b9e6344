"""Imports of the library go downward only."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nnshop

PACKAGE = Path(nnshop.__file__).parent
FLOORS = [
    {
        "blocks",
        "building",
        "checks",
        "compiling",
        "context",
        "functions",
        "graphs",
        "ids",
        "kernels",
        "options",
        "parameters",
        "portable",
        "sharing",
        "threads",
        "values",
        "version",
        "weights",
    },
    {"core", "owners", "parametric_functions", "scores", "running"},
    {"cells", "combinators", "attention"},
    {"layers", "scanning"},
    {"recurrentshop", "seq2seq", "decoding"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
BESIDE = {
    "archive",
    "config",
    "data",
    "export",
    "training",
    "distributed",
    "watching",
}  # they may import each other and floors 0 to 3, and only floor 4 imports them


def dotted(path: Path) -> str:
    """`nnshop.running.ways` for a file; the package's name for its `__init__.py`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
each_module = pytest.mark.parametrize("module", FILES)


def imports(module: str) -> set[str]:
    """The modules of nnshop that a module imports, anywhere in it; of a package, the submodule where one is taken from it."""
    path, found = FILES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in FILES else source for a in node.names}
    return {name for name in found if name.split(".")[0] == "nnshop"}


def top(module: str) -> str:
    """The name in the table of floors."""
    return module.split(".")[1]


@each_module
def test_imports_go_downward(module: str) -> None:
    if module == "nnshop":
        return
    for imported in imports(module):
        assert imported != "nnshop", f"{module} imports nnshop/__init__.py, which is for users"
        name = top(imported)
        if top(module) in BESIDE:
            assert name in BESIDE or FLOOR[name] <= 3, f"{module} imports {imported}"
        else:
            floor, below = FLOOR[top(module)], 3.5 if name in BESIDE else FLOOR[name]
            assert below <= floor, f"{module} on floor {floor} imports {imported}"


def test_every_module_has_a_floor() -> None:
    unknown = {top(module) for module in FILES if module != "nnshop"} - set(FLOOR) - BESIDE
    assert not unknown, f"put {sorted(unknown)} into the table of floors"


def test_nothing_imports_in_a_circle() -> None:
    graph = {module: imports(module) - {module} for module in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


@each_module
def test_every_module_says_what_it_is(module: str) -> None:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    first = tree.body[1]
    assert isinstance(first, ast.ImportFrom)
    assert first.module == "__future__"
    assert [alias.name for alias in first.names] == ["annotations"]


def test_the_reader_of_imports_sees_all_forms() -> None:
    """Else the tests above could not fail."""
    assert imports("nnshop.running.ways") >= {"nnshop.core", "nnshop.running.unrolled"}
    assert "nnshop.functions" in imports("nnshop.cells")
    assert "nnshop.core" in imports("nnshop")
