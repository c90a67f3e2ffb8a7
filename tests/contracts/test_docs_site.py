"""The documentation as a site: it builds strictly, search finds things, nothing is loaded from
outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
pytest.importorskip("latex2mathml", reason="needs the extra 'docs'")

from docs import build_site
from tests.support.browser import browser
from vlkd_cli.recipe.reference import about, names_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    build_site.write_pages(folder / "pages")
    assert build_site.build(folder / "pages", folder / "site") == 0
    return folder / "site"


def test_every_page_is_built_and_its_title_is_a_question(site: Path) -> None:
    pages = sorted((site.parent / "pages").rglob("*.md"))
    assert len(pages) > 150
    for page in pages:
        html = site / page.relative_to(site.parent / "pages").with_suffix(".html")
        assert html.is_file(), page
        title = next(line for line in page.read_text(encoding="utf-8").splitlines() if line.strip())
        assert title.endswith("?") or page.stem in ("changes", "license"), page


def test_search_finds_objectives(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = [entry["location"] for entry in index["docs"] if "siglip" in entry["title"].lower()]
    assert "reference/distiller/siglip.html" in found


def test_nothing_is_loaded_from_outside_and_pages_fit_a_phone(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'(?:src|<link[^>]*href)="https?:', text), page
    with browser() as page:
        for name in ("index", "reference/distiller/vicreg", "objectives"):
            for width, dark in ((1280, False), (375, True)):
                page.open(site / f"{name}.html", width=width, dark=dark)
                assert page.value("document.documentElement.scrollWidth") <= width
                assert all(address.startswith("file:") for address in page.requests)


def test_formulas_become_mathml() -> None:
    for kind in ("distiller", "head", "pooler", "section"):
        for name in names_of(kind):
            if formula := about(kind, name).formula:
                converted = build_site.mathml(formula)
                assert converted.count("<math") == 1 and "\\" not in converted, name


@pytest.mark.parametrize("link", ["nowhere.md", "index.md#nowhere"])
def test_a_broken_link_or_anchor_ends_the_build(site: Path, link: str) -> None:
    pages = site.parent / "pages"
    before = (pages / "mteb.md").read_text(encoding="utf-8")
    (pages / "mteb.md").write_text(f"{before}\n[broken]({link})\n", encoding="utf-8")
    assert build_site.build(pages, site.parent / "broken") == 1
    (pages / "mteb.md").write_text(before, encoding="utf-8")
