"""A page for every component."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vlkd_cli import catalog
from vlkd_cli.recipe.reference import about, catalogue_page, names_of
from vlkd_cli.recipe.reference_pages import (
    component_pages,
    example_of,
    index_page,
    page_name,
)

PAGES = component_pages({"seed": "a measured row"}, lambda tex: f"$$ {tex} $$")


def headings(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(("## ", "### "))]


def test_every_component_has_a_page_whose_title_is_a_question() -> None:
    for kind, entries in catalog.CATALOG.items():
        assert {page_name(kind, name) for name in entries} <= set(PAGES)
    assert {page_name("optimizer", "adamw"), page_name("section", "train")} <= set(PAGES)
    for name, page in PAGES.items():
        title = page.splitlines()[0]
        assert re.fullmatch(r"# .*`.*\?", title), name
        assert "## Which keys does it take?" in page


def test_a_page_has_formula_keys_example_measured_row_and_source() -> None:
    page = PAGES["distiller/seed.md"]
    assert f"$$ {about('distiller', 'seed').formula} $$" in page
    assert "| `queue_size` |" in page and "- paper: Fang et al." in page
    assert "a measured row" in page and "Source: `vlkd_cli/distillers/seed.py`" in page
    assert "a measured row" not in PAGES["distiller/rkd.md"]


def test_what_is_computed_has_a_formula_of_its_own_and_nothing_else_shows_one() -> None:
    for kind, start in (("distiller", "L"), ("head", ("y", "Y", "h", "Q")), ("pooler", "y")):
        for name in names_of(kind):
            assert vars(catalog.load(kind, name))["formula"].startswith(start), name
            assert PAGES[f"{kind}/{name}.md"].count("$$") == 2, name
    assert PAGES["section/schedule.md"].count("$$ f(s) = ") == 1
    assert "$$" not in PAGES["suite/retrieval.md"] + PAGES["section/train.md"]
    assert "```math\nL = " in catalogue_page() and "```math\ny = " in catalogue_page()


@pytest.mark.parametrize(
    ("kind", "name", "part"),
    [
        ("distiller", "swav", ("distillers", 0, "name", "swav")),
        ("suite", "retrieval", ("evals", 0, "suite", "retrieval")),
        ("sink", "csv", ("reports", 0, "csv")),
        ("augment", "byol", ("data",)),
        ("builder", "openclip", ("towers",)),
    ],
)
def test_examples_are_parts_of_shipped_recipes(kind: str, name: str, part: tuple[Any, ...]) -> None:
    found = example_of(kind, name)
    assert found is not None
    value, recipe = found
    assert recipe
    for key in part[:-1]:
        value = value[key]
    assert part[-1] in (value, *(value if isinstance(value, dict) else ()))
    assert name in str(found[0])


def test_what_no_recipe_uses_has_no_example() -> None:
    assert example_of("sink", "trackio") is None
    assert "## How is it written in a recipe?" not in PAGES["sink/trackio.md"]


def test_links_to_the_catalogue_lead_to_the_index_too() -> None:
    assert set(headings(catalogue_page())) <= set(headings(index_page()))
    for link in re.findall(r"\]\(reference/([^)]+)\)", index_page()):
        assert link in PAGES
