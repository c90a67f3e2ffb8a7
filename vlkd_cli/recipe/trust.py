"""What a recipe from somebody else may not contain: a recipe is a program, and opening a run, a
checkpoint, an exported folder or an index must not run it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from vlkd_cli.recipe.messages import Path, Problem, shown
from vlkd_cli.recipe.overrides import parse_path
from vlkd_cli.recipe.yaml_file import read_document

# Keys whose text chooses a component; a colon in it means a class of any Python package.
_CHOOSING = frozenset(
    ("name", "builder", "reader", "suite", "optimizer", "distiller", "sink")
    + ("pooler", "head", "adapter", "prompt", "augment", "mask", "modality")
    + ("scorers", "tasks")
)
_COMMAND = "pipe"


def check_foreign(recipe: object, remedy: str) -> list[Problem]:
    """Problems of a recipe that comes with a checkpoint, a run or an exported folder: everything in
    it that would run code from outside vlkd.

    That is a component of another package (`module:Class`), a `pipe:` command instead of a path,
    and `trust`, at any depth. The walk knows keys and not sections, so that a key added to the
    schema later is covered too.

    Args:
        recipe: plain values as YAML or JSON give them.
        remedy: what to do for someone who trusts its author, e.g. "Add --trust".
    """
    return [Problem(path, f"{text} {remedy}") for path, text in _walk(recipe, ())]


def check_foreign_overrides(overrides: Sequence[str], remedy: str) -> list[Problem]:
    """The same for `key=value` changes of a recipe that a file holds, as an index does."""
    problems = []
    for override in overrides:
        key, _, text = override.partition("=")
        changed = read_document(text, key).value
        for part in reversed(parse_path(key.strip())):
            changed = {part: changed}
        problems += check_foreign(changed, remedy)
    return problems


def _walk(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "trust" and item not in (False, None):
                yield (*path, key), "lets a model run its author's code."
            else:
                yield from _walk(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _walk(item, (*path, number))
    elif isinstance(value, str):
        if _names_code(value, path):
            yield path, f"{shown(value)} names code from outside vlkd."
        elif _may_be_command(value, path):
            yield path, f"{shown(value)} runs a command."


def _names_code(text: str, path: Path) -> bool:
    keys = [part for part in path if isinstance(part, str)]
    chooses = bool(keys) and (
        keys[-1] in _CHOOSING
        # `reports: [csv]`, `heads: {a: linear}`, `data.views: {b: simclr}`
        or (keys[0] == "reports" and len(path) == 2)
        or (len(keys) > 1 and keys[-2] in ("heads", "views"))
    )
    return chooses and ":" in text


def _may_be_command(text: str, path: Path) -> bool:
    """Whether a text is a `pipe:` command, or may become one when its braces are expanded and its
    split is filled in."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if key.endswith("split"):
        return ":" in text
    scheme, colon, _ = re.sub(r"\s|[\x00-\x20]", "", text).partition(":")
    if not colon:
        return False
    return scheme.lower() == _COMMAND or (key == "path" and "{" in scheme)
