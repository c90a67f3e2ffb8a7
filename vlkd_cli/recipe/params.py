"""The keys of a component, read from its constructor's signature without importing it.

A component's file is parsed with `ast`; annotations are evaluated in a small namespace of builtins,
typing and `recipe.types`, so that a misspelled key is found before torch is. A third party's
component (`module:Class`) is imported and inspected instead.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import contextlib
import functools
import importlib
import importlib.util
import inspect
import math
import pathlib
import typing
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from vlkd_cli import catalog
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe import types
from vlkd_cli.recipe.arrays import ARRAY_NAMES

REQUIRED: Any = object()
"""Default of a key that has none."""


class Key(NamedTuple):
    """One key of a recipe: its type, what it is when left out, and what it means."""

    name: str
    annotation: Any
    default: Any = REQUIRED
    description: str = ""

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


class Source(NamedTuple):
    """An expression that is shown as it is written, because its value is not known without running
    the component's module."""

    text: str

    def __repr__(self) -> str:
        return self.text


class Signature(NamedTuple):
    """What a component takes and declares."""

    module: str
    attribute: str
    docstring: str
    keys: tuple[Key, ...]
    attributes: dict[str, Any]
    """Class attributes with plain values, e.g. a distiller's `direction` and `minimum_batch`."""
    state: tuple[str, ...] = ()
    """Names of its buffers and queues that persist between steps."""
    is_read: bool = True
    """Whether anything is known of it, see `third_parties_unread`."""

    def key_names(self) -> list[str]:
        return [key.name for key in self.keys]


_UNREAD: ContextVar[list[tuple[str, str]] | None] = ContextVar("unread", default=None)


@contextlib.contextmanager
def third_parties_unread() -> Iterator[list[tuple[str, str]]]:
    """Context in which components of other packages are not imported: their signatures are empty,
    with `is_read=False`. Yields a list that collects the kind and name of each."""
    met: list[tuple[str, str]] = []
    token = _UNREAD.set(met)
    try:
        yield met
    finally:
        _UNREAD.reset(token)


def signature_of(kind: str, name: str) -> Signature:
    """The signature of a catalogue name, or of a third party's `module:Class`.

    Raises:
        RecipeError: no such component.
    """
    unread = _UNREAD.get()
    if ":" in name and unread is not None:
        unread.append((kind, name))
        return Signature(*catalog.locate(kind, name), "", (), {}, is_read=False)
    return _read_signature(kind, name)


@functools.cache
def _read_signature(kind: str, name: str) -> Signature:
    module, attribute = catalog.locate(kind, name)
    if ":" in name:
        return _imported(kind, name)
    path = module_file(module)
    if path is None:
        raise RecipeError(
            f"{kind} '{name}' is not part of this installation: there is no module {module}."
        )
    return read_class(path, module, attribute)


def attributes_of(kind: str, name: str) -> dict[str, Any]:
    """The class attributes of a component; none where its name is wrong, which the check of the
    shape reports."""
    try:
        return signature_of(kind, name).attributes
    except RecipeError:
        return {}


class Method(NamedTuple):
    """A method's definition and where it is written."""

    node: ast.FunctionDef
    file: Path
    names: _Names

    def value(self, annotation: ast.expr) -> Any:
        """What an annotation means; tensors are `recipe.arrays` stand-ins."""
        return self.names.value(annotation)


def find_method(kind: str, name: str, method: str) -> Method | None:
    """The nearest definition of a component's method, in its class or a base; also of a third
    party's, which is not imported if its source is enough.

    Raises:
        RecipeError: no such component.
    """
    module, attribute = catalog.locate(kind, name)
    path = module_file(module)
    chain = _family(_Source.of(path), attribute) if path is not None else []
    if not chain and ":" in name and _UNREAD.get() is None:
        component = catalog.load(kind, name)
        file = inspect.getsourcefile(component)
        chain = _family(_Source.of(Path(file)), component.__qualname__) if file else []
    for node, source in chain:
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == method:
                return Method(part, source.file, source.names)
    return None


def module_file(module: str) -> Path | None:
    """Where a module's source lies, found without importing any of its parent packages."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    # A package without __init__.py may lie in several folders.
    folders = spec.submodule_search_locations or ()
    if not rest and spec.origin is not None:
        return Path(spec.origin) if Path(spec.origin).is_file() else None
    for folder in folders:
        base = Path(folder).joinpath(*rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def read_class(path: Path, module: str, attribute: str) -> Signature:
    """The signature of a class in a source file. What it does not define itself is taken from its
    bases, in this file or others of vlkd."""
    chain = _family(_Source.of(path), attribute)
    if not chain:
        raise RecipeError(f"{module} has no class '{attribute}'.")
    docstring = next((text for node, _ in chain if (text := ast.get_docstring(node))), "")
    # Keys that a class does not document are documented by its bases.
    texts: dict[str, str] = {}
    for node, _ in reversed(chain):
        texts |= described(ast.get_docstring(node) or "")
    keys = next(
        (
            _keys(found, source.names, texts)
            for node, source in chain
            if (found := _constructor(node))
        ),
        (),
    )
    attributes: dict[str, Any] = {}
    for node, source in reversed(chain):
        attributes |= _attributes(node, source.names)
    state = dict.fromkeys(name for node, _ in chain for name in _state(node))
    return Signature(module, attribute, docstring, keys, attributes, tuple(state))


def described(docstring: str) -> dict[str, str]:
    """The text on each argument in the "Args:" part of a docstring."""
    found: dict[str, str] = {}
    current, inside, margin = "", False, None
    for line in inspect.cleandoc(docstring).splitlines():
        if line.strip() == "Args:":
            inside, margin = True, None
        elif inside and line.strip():
            indent = len(line) - len(line.lstrip())
            if indent == 0:
                inside = False
                continue
            margin = indent if margin is None else margin
            name, colon, text = line.strip().partition(":")
            if indent == margin and colon and name.replace(", ", "").isidentifier():
                current = name
                found |= {part: text.strip() for part in name.split(", ")}
            elif current:
                found |= {part: f"{found[part]} {line.strip()}" for part in current.split(", ")}
    return found


class _Names(dict[str, Any]):
    """The names that an annotation or default may use; a module's own aliases, and those that it
    imports from vlkd, are evaluated when they are asked for."""

    def __init__(self, tree: ast.Module, imported: dict[str, tuple[str, str]]) -> None:
        super().__init__(vars(builtins))
        self._imported = imported
        for module in (collections.abc, typing, types):
            self.update(
                {key: value for key, value in vars(module).items() if not key.startswith("_")}
            )
        self.update(Field=Field, Path=Path, pathlib=pathlib, math=math, typing=typing)
        self.update(ARRAY_NAMES)
        self._aliases: dict[str, ast.expr] = {}
        for node in tree.body:
            if (
                isinstance(node, ast.Assign)
                and len(node.targets) == 1
                and isinstance(node.targets[0], ast.Name)
            ):
                self._aliases[node.targets[0].id] = node.value
            elif (
                isinstance(node, ast.AnnAssign)
                and node.value is not None
                and isinstance(node.target, ast.Name)
            ):
                self._aliases[node.target.id] = node.value
        # The module's own `Protocol = Literal[...]` is meant, not typing's.
        for name in self._aliases:
            self.pop(name, None)

    def __missing__(self, name: str) -> Any:
        if name in self._aliases:
            value = self.value(self._aliases[name])
        elif name in self._imported and (file := module_file(self._imported[name][0])) is not None:
            value = _Source.of(file).names[self._imported[name][1]]
        else:
            raise NameError(f"'{name}' is not known")
        self[name] = value
        return value

    def value(self, node: ast.expr) -> Any:
        """What an expression of annotations, literals and arithmetic is worth."""
        code = compile(ast.Expression(node), "<signature>", "eval")
        return eval(code, {"__builtins__": {}}, self)

    def plain(self, node: ast.expr) -> Any:
        """The value of an expression, or its text where it needs more than these names."""
        try:
            return self.value(node)
        except (NameError, AttributeError, TypeError, ValueError):
            return Source(ast.unparse(node))


class _Source(NamedTuple):
    """A parsed file: its classes, which modules its names come from, and what its annotations may
    use."""

    file: Path
    classes: dict[str, ast.ClassDef]
    imported: dict[str, tuple[str, str]]
    names: _Names

    @classmethod
    @functools.cache
    def of(cls, path: Path) -> _Source:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
            for alias in node.names
        }
        return cls(path, classes, imported, _Names(tree, imported))


def _family(source: _Source, attribute: str) -> list[tuple[ast.ClassDef, _Source]]:
    """The class and its bases as far as they are classes of Python files, nearest first; empty
    where the file has no such class."""
    if attribute not in source.classes and attribute in source.imported:
        module, original = source.imported[attribute]
        file = module_file(module)
        return _family(_Source.of(file), original) if file is not None else []
    if attribute not in source.classes:
        return []
    chain = [(source.classes[attribute], source)]
    for base in source.classes[attribute].bases:
        if not isinstance(base, ast.Name):
            continue
        if base.id in source.classes:
            chain += _family(source, base.id)
        elif (
            base.id in source.imported
            and (file := module_file(source.imported[base.id][0])) is not None
        ):
            chain += _family(_Source.of(file), source.imported[base.id][1])
    # A base that several classes share comes after all of them, as in Python.
    later = [node for node, _ in chain]
    return [item for number, item in enumerate(chain) if item[0] not in later[number + 1 :]]


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next(
        (
            part
            for part in node.body
            if isinstance(part, ast.FunctionDef) and part.name == "__init__"
        ),
        None,
    )


def _keys(constructor: ast.FunctionDef, names: _Names, texts: dict[str, str]) -> tuple[Key, ...]:
    keys = []
    for argument, default in zip(
        constructor.args.kwonlyargs, constructor.args.kw_defaults, strict=True
    ):
        annotation = names.value(argument.annotation) if argument.annotation else Any
        value = REQUIRED if default is None else names.plain(default)
        keys.append(Key(argument.arg, annotation, value, texts.get(argument.arg, "")))
    return tuple(keys)


def _attributes(node: ast.ClassDef, names: _Names) -> dict[str, Any]:
    found = {}
    for part in node.body:
        target = (
            part.targets[0]
            if isinstance(part, ast.Assign)
            else part.target
            if isinstance(part, ast.AnnAssign)
            else None
        )
        if (
            isinstance(target, ast.Name)
            and isinstance(part, ast.Assign | ast.AnnAssign)
            and part.value is not None
        ):
            value = names.plain(part.value)
            if not isinstance(value, Source):
                found[target.id] = value
    return found


def _state(node: ast.ClassDef) -> list[str]:
    """Names of a class's buffers and queues, without learned parameters."""
    found: list[tuple[int, str]] = []
    learned = set()
    for part in ast.walk(node):
        if (
            isinstance(part, ast.Call)
            and ast.unparse(part.func) == "self.register_buffer"
            and isinstance(part.args[0], ast.Constant)
        ):
            found.append((part.lineno, str(part.args[0].value)))
        elif (
            isinstance(part, ast.Assign)
            and isinstance(part.targets[0], ast.Attribute)
            and isinstance(part.value, ast.Call)
        ):
            made = ast.unparse(part.value.func)
            if made.endswith("Queue"):
                found.append((part.lineno, part.targets[0].attr))
            elif made.endswith("Parameter"):
                learned.add(part.targets[0].attr)
    return [name for _, name in sorted(found) if name not in learned]


def _imported(kind: str, name: str) -> Signature:
    component = catalog.load(kind, name)
    constructor = component.__init__
    hints = typing.get_type_hints(constructor, include_extras=True)
    docstring = inspect.getdoc(component) or ""
    texts: dict[str, str] = {}
    for base in reversed(component.__mro__):
        texts |= described(base.__doc__ or "")
    keys = tuple(
        Key(
            parameter.name,
            hints.get(parameter.name, Any),
            REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default,
            texts.get(parameter.name, ""),
        )
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )
    attributes = {key: getattr(component, key) for key in dir(component) if not key.startswith("_")}
    module, _, attribute = name.partition(":")
    return Signature(module, attribute, docstring, keys, attributes)
