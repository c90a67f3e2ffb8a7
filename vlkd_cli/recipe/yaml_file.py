"""A YAML file as plain values that remember their lines.

Scalars follow YAML 1.2's plain rules where YAML 1.1 surprises: `1e-4` is a number, `no`, `on` and
dates are strings; `2_000_000` stays a number. `${VAR}` and `${VAR:-default}` are replaced before a
scalar's type is determined.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NamedTuple

import yaml

from vlkd_cli.recipe.messages import Path, Problem, Resolved
from vlkd_cli.recipe.variables import VARIABLE, value_of

# A recipe is a page or two. These limits bound what a hostile or broken file can cost.
MAX_CHARACTERS = 500_000
MAX_DEPTH = 64
MAX_VALUES = 50_000
MAX_DIGITS = 100
_TOO_MANY = f"more than {MAX_VALUES:,} values"

_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?[0-9][0-9_]*$|0x[0-9a-fA-F_]+$")
_MERGE = "tag:yaml.org,2002:merge"
_COLLECTIONS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_MARK = re.compile("\ue000([0-9]{1,6})\ue001")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with plainer scalars and bounded nesting."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.num_composed = 0
        self.num_merged = 0
        self.merging: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"nested more than {MAX_DEPTH} levels deep",
                self.peek_event().start_mark,
            )
        self.depth += 1
        self.num_composed += 1
        if self.num_composed > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, _TOO_MANY, self.peek_event().start_mark)
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
            return node
        finally:
            self.depth -= 1

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace `<<` by the keys of the mappings it names that the mapping has not itself. Each
        key is merged once, so aliases of aliases cannot grow without bound."""
        if all(key.tag != _MERGE for key, _ in node.value):
            return
        if id(node) in self.merging:
            raise yaml.constructor.ConstructorError(
                None, None, "an anchor that contains itself", node.start_mark
            )
        self.merging.add(id(node))
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, "`<<` merges mappings only", key.start_mark
                    )
                self.flatten_mapping(source)
                self.num_merged += len(source.value)
                if self.num_merged > MAX_VALUES:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"`<<` merges more than {MAX_VALUES:,} keys", key.start_mark
                    )
                for pair in source.value:
                    merged.setdefault(str(pair[0].value), pair)
        self.merging.discard(id(node))
        own = [pair for pair in node.value if pair[0].tag != _MERGE]
        for key, _ in own:
            merged.pop(str(key.value), None)
        node.value = [*merged.values(), *own]


for tag, pattern, first in (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), "<"),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list(first))


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    digits = str(loader.construct_scalar(node)).replace("_", "")
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits, 16 if digits.startswith("0x") else 10)


Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class Document(NamedTuple):
    """Plain values, the origin (`file:line`) of each path, and the problems found."""

    value: Any
    origins: dict[Path, str]
    problems: list[Problem]


def read_document(text: str, source: str, *, numbered: bool = True) -> Document:
    """Parse YAML text.

    Args:
        source: what messages call it; with `numbered`, lines are appended.

    Problems carry a path whose line is in `origins`; YAML that cannot be parsed at all is one
    problem.
    """
    builder = _Builder(source, numbered)
    if len(text) > MAX_CHARACTERS:
        builder.origins[()] = source
        too_long = f"{len(text):,} characters; a recipe has at most {MAX_CHARACTERS:,}."
        return Document(None, builder.origins, [Problem((), too_long)])
    try:
        loader = Loader(builder.hide_variables(text))
    except yaml.reader.ReaderError as error:
        builder.origins[()] = source
        return Document(
            None,
            builder.origins,
            [
                Problem(
                    (), f"not valid YAML: character {error.position} is not allowed in a YAML file."
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


def plain_values(text: str) -> Any:
    """The values of a YAML file that vlkd wrote, such as the recipe of a run or the page of an
    exported tower, which may be damaged by now or somebody else's; bounded like a recipe, with
    variables as they are written.

    Raises:
        ValueError: it is not such a file.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
    try:
        loader = Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_in_words(error)) from error
    except (yaml.YAMLError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError("not valid YAML") from error
    # Aliases of aliases are few values in memory, and billions where they are written out.
    count, unseen = 0, [value]
    while unseen:
        count, item = count + 1, unseen.pop()
        if count > MAX_VALUES:
            raise ValueError(_TOO_MANY)
        if isinstance(item, dict | list):
            unseen += item.values() if isinstance(item, dict) else item
    return value


class _Builder:
    """Turns nodes into values and records the line of each."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source = source
        self.numbered = numbered
        self.origins: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._num_values = 0
        self._variables: list[re.Match[str]] = []

    def hide_variables(self, text: str) -> str:
        """The text with a mark for each `${...}`, whose braces would end a flow mapping such as
        `{path: ${DATA}/x.csv}`."""

        def mark(match: re.Match[str]) -> str:
            self._variables.append(match)
            return f"\ue000{len(self._variables) - 1}\ue001"

        return VARIABLE.sub(mark, text)

    def build(self, loader: Loader, node: yaml.Node, path: Path) -> Any:
        self.origins.setdefault(path, self._origin(node))
        # Every alias is a copy: a few lines of aliases to aliases would make billions of values.
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, _TOO_MANY, node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(loader, node, path)
        if id(node) in self._open:
            raise yaml.constructor.ConstructorError(
                None, None, "an anchor that contains itself", node.start_mark
            )
        self._open.add(id(node))
        try:
            if node.tag not in _COLLECTIONS:
                raise _foreign_tag(node)
            if isinstance(node, yaml.SequenceNode):
                return [
                    self.build(loader, item, (*path, number))
                    for number, item in enumerate(node.value)
                ]
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(loader, node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, loader: Loader, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE:
                if key_node.value in lines:
                    key_path = (*path, key_node.value)
                    self.origins[key_path] = self._origin(key_node)
                    self.problems.append(
                        Problem(
                            key_path,
                            f"written twice, first in line {lines[key_node.value]}. Remove one of"
                            " the two.",
                        )
                    )
                lines.setdefault(key_node.value, key_node.start_mark.line + 1)
        own = {id(key_node) for key_node, _ in node.value}
        loader.flatten_mapping(node)
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is not a plain word", key_node.start_mark
                )
            key_path = (*path, key_node.value)
            # A key merged in with `<<` has the line of its anchor; the mapping's own keys come
            # later and win.
            if id(key_node) in own or key_path not in self.origins:
                self.origins[key_path] = self._origin(key_node)
            values[key_node.value] = self.build(loader, value_node, key_path)
        return values

    def _scalar(self, loader: Loader, node: yaml.ScalarNode, path: Path) -> object:
        def text_of(match: re.Match[str], *, written: bool) -> str:
            if int(match[1]) >= len(self._variables):
                # The file itself has these characters of Unicode's private area.
                return match[0]
            variable = self._variables[int(match[1])]
            return variable[0] if written else self._value(variable, path)

        text = _MARK.sub(partial(text_of, written=False), node.value)
        if text != node.value:
            written = _MARK.sub(partial(text_of, written=True), node.value)
            # The value of an unquoted `${EPOCHS}` may be a number; in quotes it stays a string.
            tag = (
                loader.resolve(yaml.ScalarNode, text, (True, False))
                if node.style is None
                else node.tag
            )
            resolved = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark, node.style)
            value = self._plain(loader, resolved)
            # A number is not a secret, and resuming must find the one that was trained with.
            return Resolved(value, written) if isinstance(value, str) else value
        return self._plain(loader, node)

    def _plain(self, loader: Loader, node: yaml.ScalarNode) -> Any:
        try:
            value = loader.construct_object(node, deep=True)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            value = node.value if len(node.value) <= 40 else f"{node.value[:37]}..."
            raise yaml.constructor.ConstructorError(
                None, None, f"'{value}' cannot be read as {kind}", node.start_mark
            ) from error
        if not isinstance(value, str | int | float | bool | None):
            raise _foreign_tag(node)
        return value

    def _value(self, match: re.Match[str], path: Path) -> str:
        value = value_of(match[1], match[2])
        if value is None:
            self.problems.append(
                Problem(
                    path,
                    f"the environment variable {match[1]} is not set. Set it, or write"
                    f" ${{{match[1]}:-default}}.",
                )
            )
        return value or ""

    def _origin(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.numbered else self.source


def _foreign_tag(node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(
        None, None, f"a recipe has no values of type {node.tag}", node.start_mark
    )


def _in_words(error: yaml.MarkedYAMLError) -> str:
    parts = [" ".join(part.split()) for part in (error.problem, error.context) if part]
    text = ", ".join(parts)
    if "'\\t'" in text:
        return "a tab where spaces are needed"
    return text
