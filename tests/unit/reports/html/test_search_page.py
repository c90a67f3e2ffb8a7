"""The page of a search in a real browser: silent, alone, with every thumbnail painted, and readable
on a phone and in the dark."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.browser import browser, chromium
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.reports.html.search_page import thumbnail, write_search_page


class Found(NamedTuple):
    rank: int
    score: float
    id: str
    text: str | None = None


def write(folder: Path) -> Path:
    shapes = Shapes(num_samples=12, size_px=200, split="val")
    shapes.image(0).save(folder / "query.png")
    pictures = [(Found(n + 1, 0.9 - n / 50, f"sub/{n}.png"), shapes.image(n)) for n in range(11)]
    pictures.append((Found(12, 0.1, "broken.png"), b"no picture"))
    long = "a text of many words, " * 20
    texts = [(Found(1, 0.7, "line 1", long), None), (Found(2, 0.6, "x" * 90, "b"), None)]
    write_search_page(
        folder / "page.html",
        title="Search in photos.npy",
        subtitle="runs/first/checkpoints/best.pt, step 1200; 12 images",
        scores="cosine",
        answers=[
            ("a large red disc on a white ground", None, pictures),
            ("query.png", folder / "query.png", pictures[:5]),
            ("a text that finds texts", None, texts),
        ],
    )
    return folder / "page.html"


def test_a_picture_that_cannot_be_read_has_no_thumbnail():
    assert thumbnail(b"no picture") is None and thumbnail(None) is None
    made = thumbnail(Shapes(num_samples=1, size_px=300, split="val").image(0))
    assert made is not None and made[8:12] == b"WEBP"


def test_every_query_has_its_section(tmp_path: Path):
    text = write(tmp_path).read_text()
    assert text.count("<section") == 3 and text.count("<details>") == 2
    assert text.count("missing") == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_silent_alone_and_never_wider_than_the_screen(dark: bool, tmp_path: Path):
    chromium()
    page = write(tmp_path)
    with browser() as tab:
        for width in (1280, 768, 390):
            tab.open(page, width=width, dark=dark)
            assert tab.value("document.documentElement.scrollWidth") <= width
            assert tab.messages == [] and tab.requests == [page.resolve().as_uri()]
        unpainted = """Array.from(document.querySelectorAll('.picture:not(.missing)')).filter(e =>
          !getComputedStyle(e).backgroundImage.startsWith('url("data:image/webp')
          || e.getBoundingClientRect().width < 40).length"""
        assert tab.value(unpainted) == 0
        assert tab.value("document.querySelectorAll('.picture:not(.missing)').length") == 17
