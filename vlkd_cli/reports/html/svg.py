"""Static SVG charts: lines with bands, points, parallel axes, bars.

Colors, dashes and fonts are classes of the page's style sheet (`s0` to `s5`), so that one picture
fits light, dark and print. Every chart has a title and a description for screen readers, and its
numbers in `data-readout` for the script that shows values under the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 16, 26
MAX_POINTS = 400
MARKERS_UP_TO = 40
LOG_FROM_SPAN = 20.0
NUM_STYLES = 6
OTHER = -1
"""The style of series beyond those that can be distinguished: thin and gray."""


class Line(NamedTuple):
    """A series; `band` has the lower and upper bound at some of its steps."""

    name: str
    points: Sequence[Point]
    style: int = 0
    band: Sequence[tuple[float, float, float]] = ()


class Points(NamedTuple):
    """A cloud of the scatter plot; `labels` are shown under the pointer."""

    name: str
    points: Sequence[Point]
    style: int = 0
    labels: Sequence[str] = ()


class Axis(NamedTuple):
    """One axis of the parallel view with a value for every line: numbers or words."""

    name: str
    values: Sequence[float | str]


def number(value: float) -> str:
    """A number with about four digits, short: 0.2957, 12, 1.5e-5."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace(".0e", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most 400 points: the lowest and the highest of each bucket, and no values that are not
    finite."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) <= MAX_POINTS:
        return finite
    buckets = MAX_POINTS // 2
    chosen = []
    for bucket in range(buckets):
        own = finite[bucket * len(finite) // buckets : (bucket + 1) * len(finite) // buckets]
        ends = {min(own, key=lambda point: point[1]), max(own, key=lambda point: point[1])}
        chosen += sorted(ends)
    return chosen


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    chance: float | None = None,
    best: Point | None = None,
    x_name: str = "step",
) -> str:
    """Curves over steps, with a dashed line at chance and a ring around the best point."""
    shown = [line._replace(points=thinned(line.points)) for line in lines]
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points]
    ys += [bound for line in shown for _, low, high in line.band for bound in (low, high)]
    if chance is not None:
        ys.append(chance)
    if not xs:
        return ""
    to_x = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    low, high = _range(ys)
    to_y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_grid(low, high, to_y), *_x_axis(min(xs), max(xs), to_x)]
    if chance is not None:
        y = to_y(chance)
        parts.append(f'<path class="chance" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(WIDTH - RIGHT, y - 4, f"chance {number(chance)}", "end", "soft"))
    for line in shown:
        parts += _curve(line, to_x, to_y)
    if best is not None:
        parts += _ring(best, to_x, to_y)
    parts.append('<path class="cursor" d=""/>')
    readout = {
        "x": [x_name, min(xs), max(xs), LEFT, WIDTH - RIGHT],
        "s": [
            [line.name, [_short(x) for x, _ in line.points], [_short(y) for _, y in line.points]]
            for line in shown
        ],
    }
    return _svg(title, _described(shown, chance, best), "".join(parts), readout=readout)


def scatter(title: str, clouds: Sequence[Points], *, joined: bool, height: int = 420) -> str:
    """Points on two axes without units; `joined` connects the n-th points of two clouds."""
    every = [point for cloud in clouds for point in cloud.points]
    if not every:
        return ""
    width = 640
    to_x = _scale(min(x for x, _ in every), max(x for x, _ in every), 14, width - 14)
    to_y = _scale(min(y for _, y in every), max(y for _, y in every), height - 14, 14)
    parts = []
    if joined and len(clouds) == 2:
        pairs = zip(clouds[0].points, clouds[1].points, strict=True)
        d = "".join(
            f"M{to_x(a[0]):.1f} {to_y(a[1]):.1f}L{to_x(b[0]):.1f} {to_y(b[1]):.1f}"
            for a, b in pairs
        )
        parts.append(f'<path class="pair" d="{d}"/>')
    for cloud in clouds:
        labels = list(cloud.labels) or [""] * len(cloud.points)
        for (x, y), label in zip(cloud.points, labels, strict=True):
            mark = _marker(cloud.style, to_x(x), to_y(y), 3.6)
            tip = f"<title>{escape(label)}</title>" if label else ""
            parts.append(f'<path class="f{_name(cloud.style)}" d="{mark}">{tip}</path>')
    text = ", ".join(f"{len(cloud.points)} {cloud.name}" for cloud in clouds)
    return _svg(title, text, "".join(parts), width, height)


def parallel(title: str, axes: Sequence[Axis], styles: Sequence[int], *, best: int | None) -> str:
    """One vertical axis for each key and a line for each run through its values; words are spread
    evenly, numbers that span 20 times are logarithmic."""
    width, height, top, bottom = 640, 240, 40, 26
    columns = [_axis(axis.values, height - bottom, top) for axis in axes]
    step = (width - 140) / max(len(axes) - 1, 1)
    xs = [70 + step * n for n in range(len(axes))]
    parts = []
    order = sorted(range(len(styles)), key=lambda n: (styles[n] != OTHER, n == best))
    for n in order:
        path = "L".join(f"{x:.1f} {ys[n]:.1f}" for x, (ys, _) in zip(xs, columns, strict=True))
        strong = " strong" if n == best else ""
        parts.append(f'<path class="line s{_name(styles[n])}{strong}" d="M{path}"/>')
    # Words last, so that no line crosses them.
    for x, axis, (_, marks) in zip(xs, axes, columns, strict=True):
        parts.append(f'<path class="axis" d="M{x:.1f} {top}V{height - bottom}"/>')
        letters = int(step / 6.2)
        parts.append(_text(x, 14, _clipped(axis.name, letters), "middle", "name"))
        anchor = "end" if x == xs[-1] and len(xs) > 1 else "start"
        shift = -5 if anchor == "end" else 5
        for y, word in marks:
            if top + 0.5 < y < height - bottom - 0.5:
                parts.append(_text(x + shift, y - 5, _clipped(word, letters), anchor, "soft"))
            else:  # the ends of the axis, beyond which there are no lines
                beyond = y - 8 if y < height / 2 else y + 16
                parts.append(_text(x, beyond, _clipped(word, min(letters, 22)), "middle", "soft"))
    text = f"{len(styles)} runs over {', '.join(axis.name for axis in axes)}"
    return _svg(title, text, "".join(parts), width, height)


def bar(value: float, chance: float | None = None) -> str:
    """A fraction as a bar of a table cell, with a mark where chance is."""
    width = 96.0
    filled = width * min(max(value, 0.0), 1.0)
    mark = ""
    if chance is not None:
        x = width * min(max(chance, 0.0), 1.0)
        mark = f'<path class="mark" d="M{x:.1f} 0V12"/>'
    return (
        f'<svg class="bar" viewBox="0 0 {width:.0f} 12" aria-hidden="true">'
        f'<rect class="track" y="3" width="{width:.0f}" height="6"/>'
        f'<rect class="f0" y="3" width="{filled:.1f}" height="6"/>{mark}</svg>'
    )


def sample(style: int, *, marker_only: bool = False) -> str:
    """A piece of a series for the legend."""
    mark = _marker(style, 12, 6, 3.2)
    line = "" if marker_only else f'<path class="line s{_name(style)}" d="M0 6H24"/>'
    return (
        f'<svg class="sample" viewBox="0 0 24 12" aria-hidden="true">{line}'
        f'<path class="f{_name(style)}" d="{mark}"/></svg>'
    )


def _name(style: int) -> str:
    """What the classes of a style end in."""
    return "x" if style == OTHER else str(style % NUM_STYLES)


def _curve(line: Line, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> list[str]:
    style, parts = _name(line.style), []
    if line.band:
        upper = "L".join(f"{to_x(x):.1f} {to_y(high):.1f}" for x, _, high in line.band)
        lower = "L".join(f"{to_x(x):.1f} {to_y(low):.1f}" for x, low, _ in reversed(line.band))
        parts.append(f'<path class="band f{style}" d="M{upper}L{lower}Z"/>')
    places = [(to_x(x), to_y(y)) for x, y in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    if len(places) > 1:
        parts.append(f'<path class="line s{style}" d="M{path}"/>')
    if len(places) <= MARKERS_UP_TO:
        marks = "".join(_marker(line.style, x, y, 2.6) for x, y in places)
        parts.append(f'<path class="f{style}" d="{marks}"/>')
    return parts


def _ring(best: Point, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> list[str]:
    x, y = to_x(best[0]), to_y(best[1])
    words = f"best {number(best[1])} at step {best[0]:,.0f}"
    anchor, at = ("end", x + 4) if x > WIDTH / 2 else ("start", x - 4)
    return [
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>',
        _text(at, y - 9 if y > TOP + 8 else y + 17, words, anchor, "name"),
    ]


def _marker(style: int, x: float, y: float, r: float) -> str:
    kind = style % 4
    if kind == 1:
        return f"M{x:.1f} {y - 1.2 * r:.1f}l{1.15 * r:.1f} {2 * r:.1f}h{-2.3 * r:.1f}z"
    if kind == 2:
        return f"M{x - 0.9 * r:.1f} {y - 0.9 * r:.1f}h{1.8 * r:.1f}v{1.8 * r:.1f}h{-1.8 * r:.1f}z"
    if kind == 3:
        d = 1.25 * r
        return f"M{x:.1f} {y - d:.1f}l{d:.1f} {d:.1f}l{-d:.1f} {d:.1f}l{-d:.1f} {-d:.1f}z"
    return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r:.1f} 0a{r} {r} 0 1 0 {-2 * r:.1f} 0z"


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    if high <= low:
        return lambda value: (start + stop) / 2
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of the vertical axis: from 0 where the values come near it."""
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return (0.0, high + pad) if low >= 0 else (low - pad, high + pad)
    pad = 0.08 * (high - low)
    if 0 <= low < 0.6 * high:
        return 0.0, high + pad
    return low - pad, high + pad


def _grid(low: float, high: float, to_y: Callable[[float], float]) -> str:
    parts = []
    for value in ticks(low, high):
        y = to_y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, number(round(value, 12)), "end", "soft"))
    base = HEIGHT - BOTTOM
    return "".join([*parts, f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>'])


def _x_axis(low: float, high: float, to_x: Callable[[float], float]) -> list[str]:
    return [
        _text(to_x(value), HEIGHT - BOTTOM + 16, f"{value:,.0f}", "middle", "soft")
        for value in ticks(low, high, 4)
        if value == round(value)
    ]


def _axis(
    values: Sequence[float | str], bottom: float, top: float
) -> tuple[list[float], list[tuple[float, str]]]:
    """Height of each value, and the marks of the axis."""
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        words = sorted({str(value) for value in values})
        to_y = _scale(0, len(words) - 1, bottom, top)
        heights = {word: to_y(n) for n, word in enumerate(words)}
        return [heights[str(value)] for value in values], _apart([(heights[w], w) for w in words])
    low, high = min(numbers), max(numbers)
    is_log = low > 0 and high / low >= LOG_FROM_SPAN
    shape = math.log if is_log else float
    to_y = _scale(shape(low), shape(high), bottom, top)
    few = sorted(set(numbers)) if len(set(numbers)) <= 5 else [low, high]
    marks = [(to_y(shape(value)), number(value)) for value in few]
    return [to_y(shape(value)) for value in numbers], _apart(marks)


def _apart(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The marks but for those nearer than a line of text, which would lie over each other; the last
    is always one."""
    chosen: list[tuple[float, str]] = []
    for n, mark in enumerate(marks):
        is_near = bool(chosen) and abs(chosen[-1][0] - mark[0]) < 14
        if is_near and n == len(marks) - 1:
            chosen.pop()
        if not is_near or n == len(marks) - 1:
            chosen.append(mark)
    return chosen


def _text(x: float, y: float, words: str, anchor: str, kind: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _clipped(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: max(most - 1, 1)]}\N{HORIZONTAL ELLIPSIS}"


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _described(lines: Sequence[Line], chance: float | None, best: Point | None) -> str:
    parts = []
    for line in lines:
        first, last = line.points[0] if line.points else None, line.points[-1:]
        if first is not None:
            parts.append(
                f"{line.name}: {number(first[1])} at {first[0]:,.0f},"
                f" {number(last[0][1])} at {last[0][0]:,.0f}"
            )
    if best is not None:
        parts.append(f"best {number(best[1])} at {best[0]:,.0f}")
    if chance is not None:
        parts.append(f"chance {number(chance)}")
    return "; ".join(parts)


def _svg(
    title: str,
    description: str,
    content: str,
    width: int = WIDTH,
    height: int = HEIGHT,
    *,
    readout: object = None,
) -> str:
    data = ""
    if readout is not None:
        data = f' data-readout="{escape(json.dumps(readout, separators=(",", ":")))}"'
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"{data}><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{content}</svg>"
    )
