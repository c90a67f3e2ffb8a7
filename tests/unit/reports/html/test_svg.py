"""Charts: well-formed, with every number at its position."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from vlkd_cli.reports.html import svg
from vlkd_cli.reports.html.svg import Axis, Line, Points


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


def classes(text: str) -> list[str]:
    return [element.get("class", "") for element in parsed(text).iter()]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.29571, "0.2957"),
        (12.0, "12"),
        (1.5e-5, "1.5e-5"),
        (1e-10, "1e-10"),
        (12345.6, "12,346"),
        (2e7, "2e7"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert svg.number(value) == text


def test_ticks_are_round_and_inside():
    assert svg.ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert svg.ticks(3, 60) == [20, 40, 60]
    assert svg.ticks(5, 5) == [5]


def test_a_long_series_shows_its_extremes_in_400_points():
    points = [(n, math.sin(n / 50)) for n in range(10_000)]
    points[5_000] = (5_000, 9.0)
    few = svg.thinned(points)
    assert len(few) <= 400
    assert max(few, key=lambda p: p[1]) == (5_000, 9.0)
    assert few == sorted(few)


def test_values_that_are_not_finite_leave_a_chart_of_the_others():
    text = svg.line_chart("t", [Line("a", [(0, math.nan), (1, 1.0), (2, math.inf), (3, 2.0)])])
    assert "nan" not in text and "inf" not in text
    assert json.loads(parsed(text).get("data-readout"))["s"] == [["a", [1, 3], [1.0, 2.0]]]
    assert svg.line_chart("t", [Line("a", [(0, math.nan)])]) == ""


def test_a_curve_has_its_band_chance_and_ring():
    line = Line("a", [(0, 0.1), (10, 0.5)], 1, [(0, 0.0, 0.2), (10, 0.4, 0.6)])
    text = svg.line_chart("x < y", [line], chance=0.05, best=(10, 0.5))
    found = classes(text)
    assert {"chance", "ring", "band f1", "line s1", "cursor"} <= set(found)
    root = parsed(text)
    namespace = ""
    assert root.find(f"{namespace}title").text == "x < y"
    assert "a: 0.1 at 0, 0.5 at 10; best 0.5 at 10; chance 0.05" in root.find("desc").text
    assert "best 0.5 at step 10" in "".join(root.itertext())


def test_names_from_outside_are_escaped():
    name = "<script>alert('x')</script>\"&"
    clouds = [Points(name, [(0, 0), (1, 1)], 0, [name, name])]
    for text in (
        svg.line_chart(name, [Line(name, [(0, 1), (1, 2)])]),
        svg.scatter(name, clouds, joined=False),
        svg.parallel(name, [Axis(name, [name, "b"]), Axis("y", [1, 2])], [0, 1], best=0),
    ):
        assert "<script" not in text
        assert name in "".join(parsed(text).itertext())


def test_pairs_are_joined():
    clouds = [Points("a", [(0, 0), (1, 1)]), Points("b", [(0, 1), (1, 0)], 1)]
    (line,) = [e for e in parsed(svg.scatter("t", clouds, joined=True)) if e.get("class") == "pair"]
    assert line.get("d").count("M") == 2
    assert "pair" not in classes(svg.scatter("t", clouds, joined=False))


def heights(axis: Axis, other: Axis) -> list[float]:
    root = parsed(svg.parallel("t", [axis, other], [0] * len(axis.values), best=None))
    lines = [e.get("d") for e in root if e.get("class", "").startswith("line")]
    return [float(d[1:].split("L")[0].split()[1]) for d in lines]


def test_an_axis_is_logarithmic_from_a_span_of_20():
    other = Axis("y", [1, 2, 3])
    low, middle, high = heights(Axis("lr", [1e-4, 1e-3, 1e-2]), other)
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    low, middle, high = heights(Axis("n", [1, 10, 19]), other)
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    low, middle, high = heights(Axis("n", [1, 10, 20]), other)
    assert middle != pytest.approx((low + high) / 2, abs=5)


def test_words_are_spread_evenly_over_their_axis():
    low, middle, high = heights(Axis("name", ["a", "b", "c"]), Axis("y", [1, 2, 3]))
    assert middle == pytest.approx((low + high) / 2, abs=0.1)


@pytest.mark.parametrize(("value", "width"), [(0.5, "48.0"), (1.7, "96.0"), (-1.0, "0.0")])
def test_a_bar_is_a_fraction(value, width):
    assert parsed(svg.bar(value, 0.1)).findall("rect")[1].get("width") == width


def test_equal_values_and_single_points_do_not_divide_by_zero():
    for points in ([(5, 1.0)], [(1, 2.0), (2, 2.0)], [(1, 0.0), (2, 0.0)]):
        assert parsed(svg.line_chart("t", [Line("a", points)], best=points[0])) is not None
    assert parsed(svg.scatter("t", [Points("a", [(1, 1)])], joined=False)) is not None
    assert parsed(svg.parallel("t", [Axis("a", [1, 1])], [0, 1], best=0)) is not None


def test_words_of_an_axis_do_not_lie_over_each_other():
    chart = svg.parallel(
        "t", [Axis("model", [f"m{n:02d}" for n in range(30)])], [0] * 30, best=None
    )
    heights = [float(y) for y in re.findall(r'<text class="soft"[^>]* y="([\d.]+)"', chart)]
    assert len(heights) > 5 and ">m00<" in chart and ">m29<" in chart
    assert min(abs(a - b) for a, b in pairwise(heights)) >= 14


def test_the_ends_of_an_axis_are_named_beyond_it_and_what_is_between_next_to_it():
    axes = [Axis("lr", [1e-4, 1e-3, 1e-2]), Axis("y", [1, 2, 3])]
    root = parsed(svg.parallel("t", axes, [0, 0, 0], best=None))
    marks = {e.text: e for e in root if e.get("class") == "soft"}
    line = next(e.get("d") for e in root if e.get("class") == "axis")
    x, top, bottom = (float(n) for n in re.findall(r"[\d.]+", line))
    assert float(marks["0.01"].get("y")) < top and float(marks["1e-4"].get("y")) > bottom
    assert [marks[word].get("text-anchor") for word in ("0.01", "1e-4")] == ["middle"] * 2
    assert marks["0.001"].get("text-anchor") == "start" and float(marks["0.001"].get("x")) > x
