"""A page for every component, out of the same signatures as `vlkd show`: what the documentation
site is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from vlkd_cli import catalog
from vlkd_cli.recipe.params import module_file
from vlkd_cli.recipe.reference import about, kinds, markdown_table, names_of
from vlkd_cli.recipe.shipped import shipped_recipes

_LEFT_OUT = ("model",)
"""Kinds with a page of their own in docs/."""
_WITH_SIBLINGS = ("builder", "reader", "suite")
"""Kinds whose keys are written next to the component's name, and not below it."""
_CHOOSING = {
    "builder": ("builder",),
    "reader": ("reader",),
    "suite": ("suite",),
    "distiller": ("distillers",),
    "sink": ("reports",),
    "optimizer": ("optimizer",),
    "head": ("head", "heads"),
    "augment": ("augment", "views"),
    "mask": ("masks", "mask"),
}
"""Keys under which a recipe names a component of a kind; by default the kind itself."""


def page_name(kind: str, name: str) -> str:
    """The page's file below the reference folder."""
    return f"{kind}/{name}.md"


def component_pages(measured: Mapping[str, str], formula: Callable[[str], str]) -> dict[str, str]:
    """Every page by its file name.

    Args:
        measured: Markdown on the measured results of a distiller, by name.
        formula: renders TeX for the page.
    """
    pages = {}
    for kind in kinds():
        for name in names_of(kind) if kind not in _LEFT_OUT else ():
            pages[page_name(kind, name)] = _page(kind, name, measured, formula)
    return pages


def index_page() -> str:
    """The page that leads to all others; its headings are those of docs/catalogue.md, so links to
    them still lead somewhere."""
    parts = ["# Where is every key explained?", ""]
    parts += ["`vlkd show KIND NAME` prints the same in a terminal.", ""]
    for kind in kinds():
        if kind in _LEFT_OUT:
            continue
        parts += [f"## {_plural(kind)}", ""]
        if kind == "section":
            for name in names_of(kind):
                parts += [
                    f"### `{name}:`",
                    "",
                    f"[Its keys](reference/{page_name(kind, name)})",
                    "",
                ]
            continue
        for name in names_of(kind):
            parts += [f"### {kind} `{name}`", ""] if kind != "optimizer" else []
            link = f"reference/{page_name(kind, name)}"
            parts += [f"[{_summary(kind, name)}]({link})", ""]
    return "\n".join(parts)


def example_of(kind: str, name: str) -> tuple[dict[str, Any], str] | None:
    """The smallest part of a shipped recipe that names a component, and that recipe's name."""
    found = [
        (len(json.dumps(fragment, default=str)), recipe, fragment)
        for recipe, content in _recipes().items()
        for fragment in _naming(content, kind, name)
    ]
    if not found:
        return None
    _, recipe, fragment = min(found, key=lambda each: each[:2])
    return fragment, recipe


def _page(kind: str, name: str, measured: Mapping[str, str], formula: Callable[[str], str]) -> str:
    page = about(kind, name)
    title = f"# What does {kind} `{name}` do?"
    if kind == "section":
        title = f"# What goes under `{name}:`?"
    parts = [title, ""]
    if kind in catalog.CATALOG:
        parts += [f"**{_summary(kind, name)}**", ""]
    if page.formula:
        parts += [formula(page.formula), ""]
    parts += [page.text, ""]
    parts += [f"- {fact}: {value}" for fact, value in page.facts]
    parts += ["", "## Which keys does it take?", "", *markdown_table(page.keys)]
    example = example_of(kind, name)
    if example is not None:
        fragment, recipe = example
        text = yaml.safe_dump(fragment, sort_keys=False, default_flow_style=None, width=100)
        parts += ["## How is it written in a recipe?", "", "```yaml", text.rstrip(), "```", ""]
        parts += [f"From the recipe that `vlkd recipes show {recipe}` prints.", ""]
    if kind == "distiller" and name in measured:
        parts += ["## How does it fare?", "", measured[name], ""]
    if kind in catalog.CATALOG:
        module = catalog.locate(kind, name)[0]
        if module_file(module) is not None:
            parts += [f"Source: `{module.replace('.', '/')}.py`", ""]
    return "\n".join(parts)


def _summary(kind: str, name: str) -> str:
    if kind in catalog.CATALOG:
        summary = catalog.CATALOG[kind][name].summary
        return summary[:1].upper() + summary[1:]
    return f"{kind} {name}"


def _plural(kind: str) -> str:
    return {"suite": "Suites", "section": "Sections"}.get(kind, f"{kind.capitalize()}s")


@cache
def _recipes() -> dict[str, Any]:
    return {
        name: yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, path in shipped_recipes().items()
    }


def _naming(value: object, kind: str, name: str, under: str = "") -> Iterator[Any]:
    """Parts of a recipe that name the component, each with the sections around it."""
    wanted = _CHOOSING.get(kind, (kind,))
    if isinstance(value, Mapping):
        for key, item in value.items():
            if item == name and key == "name" and under in wanted:
                yield dict(value)
            elif item == name and key in wanted:
                yield dict(value) if kind in _WITH_SIBLINGS else {key: item}
            for inner in _naming(item, kind, name, str(key)):
                yield {key: inner}
    elif isinstance(value, list):
        for item in value:
            if under in wanted and item == name:
                yield [item]
            for inner in _naming(item, kind, name, under):
                yield [inner]
