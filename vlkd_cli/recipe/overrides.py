"""`--set key=value`: the one way to change a recipe from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.recipe.messages import Path, Problem, Written, shown, written
from vlkd_cli.recipe.yaml_file import MAX_DEPTH, Document, read_document


class Setting(Written):
    """`key=value` that the user wrote as an option of its own, e.g. `--seeds 0,1`."""


def apply_overrides(
    document: Document, overrides: Sequence[str], *, option: str = "--set"
) -> list[Problem]:
    """Write each `a.b[0].c=value` into the document, in order; the value is read as YAML.

    Sections that the recipe leaves out come to be; whether their keys exist is found by the
    recipe's check, which then names the option.

    Args:
        option: what the option is called in messages; a `Setting` has its own.
    """
    example = "optimizer.lr=1e-4" if option == "--set" else "data.split=test"
    problems = []
    for override in overrides:
        origin = override.written if isinstance(override, Setting) else f"{option} {override}"
        key, equals, text = override.partition("=")
        path = parse_path(key.strip())
        if not equals or not path:
            document.origins[(origin,)] = origin
            problems.append(Problem((origin,), f"write key=value, e.g. {option} {example}."))
            continue
        value = read_document(text, origin, numbered=False)
        wrong = value.problems[0].text if value.problems else _insert(document, path, value, origin)
        if wrong is not None:
            # A separate path prevents the message from being taken for one about the file's value.
            document.origins[(origin,)] = origin
            problems.append(Problem((origin,), wrong))
    return problems


def parse_path(text: str) -> Path:
    """`distillers[0].weight` or `distillers.0.weight` as ("distillers", 0, "weight"); () where it
    is not a path, or deeper than a recipe can be."""
    if not re.fullmatch(r"[^.\[\]]+(?:\.[^.\[\]]+|\[\d+\])*", text):
        return ()
    parts = re.findall(r"[^.\[\]]+", text)
    if len(parts) > MAX_DEPTH:
        return ()
    return tuple(int(part) if part.isdigit() else part for part in parts)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest suffix of each dotted key that no other has."""
    short = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            suffix = parts[-length:]
            if sum(other.split(".")[-length:] == suffix for other in keys) == 1:
                break
        short[key] = ".".join(suffix)
    return short


def _insert(document: Document, path: Path, value: Document, origin: str) -> str | None:
    """Insert the value at its path; what is wrong with the path, if anything."""
    here: Any = document.value
    if not isinstance(here, dict):
        return "the recipe has no keys to set."
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        at = path[:depth]
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                return (
                    f"{written(at)} is a list with {len(here)}"
                    f" {'entry' if len(here) == 1 else 'entries'}, counted from 0."
                )
        elif not isinstance(here, dict):
            return f"{written(at)} is {shown(here)} and has no keys."
        elif at == ("towers",) and not last and part not in here:
            return f"no tower '{part}'.{did_you_mean(str(part), here)} Towers: {', '.join(here)}."
        if last:
            here[part] = value.value
        else:
            if isinstance(here, dict) and here.get(part) is None:
                here[part] = {}
                document.origins[(*at, part)] = origin
            here = here[part]
    # What was wrong with a value that is replaced, e.g. a variable that is not set, is gone.
    document.problems[:] = [
        problem for problem in document.problems if problem.path[: len(path)] != path
    ]
    for old in [known for known in document.origins if known[: len(path)] == path]:
        del document.origins[old]
    for inner in value.origins:
        document.origins[(*path, *inner)] = origin
    document.origins[path] = origin
    return None
