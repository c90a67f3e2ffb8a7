"""A YAML file as plain values that remember their lines.

Scalars follow YAML 1.2's plain rules where YAML 1.1 surprises: `1e-4` is a number, `no`, `on` and
dates are text; `2_000_000` stays a number. `${VAR}` and `${VAR:-default}` are replaced before a
scalar's type is told.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import yaml

from vlkd_cli.recipe.messages import Path, Problem

_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?[0-9][0-9_]*$|0x[0-9a-fA-F_]+$")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")

_MARK = re.compile("\ue000(\\d+)\ue001")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with plainer scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for tag, pattern, first in (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), "<"),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list(first))


def _whole_number(loader: Loader, node: yaml.ScalarNode) -> int:
    digits = str(loader.construct_scalar(node)).replace("_", "")
    return int(digits, 16 if digits.startswith("0x") else 10)


Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class Document(NamedTuple):
    """Plain values, the origin (`file:line`) of each place, and what was wrong on the way."""

    value: Any
    origins: dict[Path, str]
    problems: list[Problem]


def read_document(text: str, source: str, *, numbered: bool = True) -> Document:
    """Parse YAML text.

    Args:
        source: what messages call it; with `numbered`, lines are appended.

    Problems carry the empty path and say the line themselves only through `origins`; YAML that
    cannot be parsed at all is one problem.
    """
    builder = _Builder(source, numbered)
    try:
        loader = Loader(builder.hide_variables(text))
    except yaml.reader.ReaderError as error:
        builder.origins[()] = source
        return Document(
            None,
            builder.origins,
            [
                Problem(
                    (), f"not valid YAML: character {error.position} may not stand in a YAML file."
                )
            ],
        )
    try:
        node = loader.get_single_node()
        value = None if node is None else builder.build(loader, node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        builder.origins[()] = f"{source}:{mark.line + 1}" if numbered and mark else source
        return Document(
            None, builder.origins, [Problem((), f"not valid YAML: {_in_words(error)}.")]
        )
    finally:
        loader.dispose()
    return Document(value, builder.origins, builder.problems)


class _Builder:
    """Turns nodes into values and keeps the line of each."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered
        self.origins: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._variables: list[tuple[str, str | None]] = []

    def hide_variables(self, text: str) -> str:
        """The text with a mark for each `${...}`, whose braces would end a flow mapping such as
        `{path: ${DATA}/x.csv}`."""

        def mark(match: re.Match[str]) -> str:
            self._variables.append((match[1], match[2]))
            return f"\ue000{len(self._variables) - 1}\ue001"

        return _VARIABLE.sub(mark, text)

    def build(self, loader: Loader, node: yaml.Node, path: Path) -> Any:
        self.origins.setdefault(path, self._place(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(loader, node, path)
        if id(node) in self._open:
            raise yaml.constructor.ConstructorError(
                None, None, "an anchor that contains itself", node.start_mark
            )
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [
                    self.build(loader, item, (*path, number))
                    for number, item in enumerate(node.value)
                ]
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(loader, node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, loader: Loader, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in lines:
                    place = (*path, key_node.value)
                    self.origins[place] = self._place(key_node)
                    self.problems.append(
                        Problem(
                            place,
                            f"written twice, first in line {lines[key_node.value]}. Remove one of"
                            " the two.",
                        )
                    )
                lines.setdefault(key_node.value, key_node.start_mark.line + 1)
        own = {id(key_node) for key_node, _ in node.value}
        loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is no plain word", key_node.start_mark
                )
            place = (*path, key_node.value)
            # A key merged in with `<<` stands where its anchor is; the mapping's own keys come
            # later and win.
            if id(key_node) in own or place not in self.origins:
                self.origins[place] = self._place(key_node)
            values[key_node.value] = self.build(loader, value_node, place)
        return values

    def _scalar(self, loader: Loader, node: yaml.ScalarNode, path: Path) -> Any:
        text = _MARK.sub(
            lambda match: self._variable(*self._variables[int(match[1])], path), node.value
        )
        if text != node.value:
            # What a plain `${EPOCHS}` stands for may be a number; in quotes it stays text.
            tag = (
                loader.resolve(yaml.ScalarNode, text, (True, False))
                if node.style is None
                else node.tag
            )
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style)
        return loader.construct_object(node, deep=True)

    def _variable(self, name: str, default: str | None, path: Path) -> str:
        value = os.environ.get(name, "")
        if value or (name in os.environ and default is None):
            return value
        if default is None:
            self.problems.append(
                Problem(
                    path,
                    f"the environment variable {name} is not set. Set it, or write"
                    f" ${{{name}:-default}}.",
                )
            )
            return ""
        return default

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.numbered else self.source


def _in_words(error: yaml.MarkedYAMLError) -> str:
    parts = [" ".join(part.split()) for part in (error.problem, error.context) if part]
    text = ", ".join(parts)
    if "'\\t'" in text:
        return "a tab where spaces are needed"
    return text
