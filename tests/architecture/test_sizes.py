"""What makes the code readable: no import circles, functions that fit a screen, lines that end
before column 100, files of a size that holds one idea."""

from __future__ import annotations

import ast
import graphlib
import re
import statistics
from pathlib import Path
from typing import Annotated, get_origin

import pytest

from tests.architecture.test_layers import PACKAGE, imports_of, source_files
from vlkd_cli.commands import options

ROOT = PACKAGE.parent
MAX_COLUMNS, MAX_FUNCTION_LINES = 100, 80


def test_no_modules_import_each_other_when_they_are_imported():
    graph = {name: _imports(path) - {name} for name, path in _modules().items()}
    assert sum(map(len, graph.values())) > 500
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"
        for path in source_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := _lines(node)) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_lines_end_before_column_100():
    def without_directive(line: str) -> str:
        return re.sub(r"  # type: ignore\[.*", "", line)

    own, tests = source_files(), sorted((ROOT / "tests").rglob("*.py"))
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*own, *tests]
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        # In tests as ruff measures it: a directive to a type checker does not count.
        if len(line if path in own else without_directive(line)) > MAX_COLUMNS
    ]
    assert wide == []


def test_the_median_file_holds_one_idea():
    sizes = [
        len(path.read_text(encoding="utf-8").splitlines())
        for path in source_files()
        if path.name != "__init__.py"
    ]
    assert 100 <= statistics.median(sizes) <= 250


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function; the options that a command declares are its table, not its code."""
    assert node.end_lineno is not None
    table = [
        argument.annotation
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None and _declares_an_option(argument.annotation)
    ]
    declared = sum((each.end_lineno or 0) - each.lineno + 1 for each in table)
    return node.end_lineno - node.lineno + 1 - declared


def _declares_an_option(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Name):
        return get_origin(getattr(options, annotation.id, None)) is Annotated
    return isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated"


def _modules() -> dict[str, Path]:
    names = {}
    for path in source_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _imports(path: Path) -> set[str]:
    """Modules that are imported while this one is, packages that only name them left out."""
    known = _modules()
    modules = set(imports_of(path, top_level_only=True)) & set(known)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(known)
            if inner:
                modules = (modules - {node.module}) | inner
    return modules
