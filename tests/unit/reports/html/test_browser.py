"""The page in a real browser: silent, alone, and readable on a phone, in the dark and on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.browser import browser, chromium
from tests.support.run_folders import make_run
from tests.unit.reports.html.test_write import full_run
from vlkd_cli.reports.html.write import write_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    chromium()
    place = tmp_path_factory.mktemp("pages")
    run = full_run(place / "a-run-with-a-rather-long-name-20261126-041928")
    others = [
        make_run(place / f"{n}", seed=n % 3, keys={"optimizer.lr": n // 3, "data.limit": n // 3})
        for n in range(6)
    ]
    return {"run": write_report([run]), "comparison": write_report(others)}


@pytest.fixture(scope="module")
def tab(pages):
    with browser() as page:
        yield page


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 768, 390])
@pytest.mark.parametrize("name", ["run", "comparison"])
def test_a_page_is_silent_alone_and_never_wider_than_the_screen(pages, tab, name, width, dark):
    tab.open(pages[name], width=width, dark=dark)
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.messages == []
    assert tab.requests == [pages[name].resolve().as_uri()]


def test_every_picture_is_painted(pages, tab):
    tab.open(pages["run"])
    tiles = tab.value("document.querySelectorAll('.picture:not(.missing)').length")
    assert tiles >= 12
    broken = """Array.from(document.querySelectorAll('.picture:not(.missing)')).filter(e => {
      return !getComputedStyle(e).backgroundImage.startsWith('url("data:image/webp')
        || e.getBoundingClientRect().width < 40 }).length"""
    assert tab.value(broken) == 0


def test_colors_follow_the_reader(pages, tab):
    found = {}
    for dark in (False, True):
        tab.open(pages["run"], dark=dark)
        found[dark] = tab.value("getComputedStyle(document.body).backgroundColor")
    assert found == {False: "rgb(255, 255, 255)", True: "rgb(20, 23, 27)"}
    tab.open(pages["run"], dark=True, media="print")
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_values_appear_under_the_pointer(pages, tab):
    tab.open(pages["run"])
    shown = """(function () {
      var svg = document.querySelector('svg[data-readout]'), frame = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove',
        {clientX: frame.right - 1, clientY: frame.top + 20}));
      var box = svg.parentNode.querySelector('.readout');
      return [box.hidden, box.textContent]; })()"""
    assert tab.value(shown) == [False, "step 30\ntop1  0.25"]
    assert tab.messages == []


def test_a_screenshot_is_not_blank_and_a_print_has_pages(pages, tab, tmp_path):
    tab.open(pages["run"], width=390)
    tab.screenshot(tmp_path / "phone.png")
    with Image.open(tmp_path / "phone.png") as image:
        assert image.width == 390 and image.height > 1500
        assert len(image.convert("RGB").resize((64, 256)).getcolors(1 << 16)) > 50
    tab.open(pages["run"])
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
