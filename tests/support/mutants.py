"""Change code that is already imported, to see whether tests notice."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import vlkd_cli

PACKAGE = Path(vlkd_cli.__file__).parent


@contextmanager
def mutated(edits: Mapping[str, str]) -> Iterator[None]:
    """Within it, each text (a key) of the package's source is replaced by another (its value).

    The texts are all in one file, wherever that is, each exactly once. Functions take the code of
    the changed source and keep their identity, so that everything that imported them is affected.
    """
    path = _file_with(edits)
    source = path.read_text(encoding="utf-8")
    pattern = "|".join(re.escape(text) for text in edits)
    changed = compile(re.sub(pattern, lambda found: edits[found[0]], source), str(path), "exec")
    codes = {code.co_qualname: code for code in _codes(changed)}
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    # Neither those that dataclasses generate nor lambdas, which share one name.
    functions = [
        function
        for function in _functions(importlib.import_module(name))
        if function.__qualname__ in codes and function.__name__.isidentifier()
    ]
    own_codes = [function.__code__ for function in functions]
    try:
        for function in functions:
            function.__code__ = codes[function.__qualname__]
        yield
    finally:
        for function, code in zip(functions, own_codes, strict=True):
            function.__code__ = code


def _file_with(edits: Mapping[str, str]) -> Path:
    found = [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if all(path.read_text(encoding="utf-8").count(text) == 1 for text in edits)
    ]
    advice = "if the code was rewritten, write the mutant for the new code"
    assert len(found) == 1, f"{len(found)} files of the package hold {list(edits)} once; {advice}"
    return found[0]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions(owner: ModuleType | type) -> Iterator[FunctionType]:
    """Functions and methods written in a module, without their decorators."""
    module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    value: Any
    for value in vars(owner).values():
        if getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value):
            yield from _functions(value)
        elif inspect.isfunction(function := inspect.unwrap(value)):
            yield function
