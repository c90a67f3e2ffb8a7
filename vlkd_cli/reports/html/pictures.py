"""Thumbnails of a page: each picture once, as WebP inside the style sheet, 80 at most."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

MOST_PICTURES = 80
THUMBNAIL_PX = 144
WEBP_QUALITY = 62
MOST_BYTES = 2_000_000
"""Of all thumbnails together, as base64; the page has 3 MB."""


class Shown(NamedTuple):
    """What an evaluation left for the page: its lists, the map, and its pictures by row."""

    lists: dict[str, Any]
    points: list[list[tuple[float, float]]]
    variance: float
    pictures: dict[int, Path | bytes]


def read_shown(path: Path) -> Shown | None:
    """Read a `KEY.map.npz`; None where there is none or it is damaged."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            lists = json.loads(str(file["lists"]))
            stored = file["thumbnails"].tobytes()
            points = (
                [[(float(x), float(y)) for x, y in cloud] for cloud in file["map"]]
                if ("map" in file)
                else []
            )
            variance = float(file["map_variance"]) if "map_variance" in file else 0.0
        places = lists.pop("pictures")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    pictures: dict[int, Path | bytes] = {
        int(row): Path(place) if isinstance(place, str) else stored[place[0] : place[1]]
        for row, place in places.items()
    }
    return Shown(lists, points, variance, pictures)


class Gallery:
    """Gives every picture of the page a class of the style sheet.

    Args:
        most: pictures of the page; further ones are gray tiles.
    """

    def __init__(self, most: int = MOST_PICTURES) -> None:
        self._most = most
        self._classes: dict[Path | bytes, str] = {}
        self._rules: list[str] = []
        self._bytes = 0

    def add(self, picture: Path | bytes | None) -> str:
        """The class that shows a picture; empty, which is a gray tile, where it cannot be read or
        the page is full."""
        if picture is None:
            return ""
        if picture not in self._classes:
            self._classes[picture] = self._new(picture)
        return self._classes[picture]

    @property
    def style(self) -> str:
        """The rules of all pictures."""
        return "\n".join(self._rules)

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self._rules)

    def _new(self, picture: Path | bytes) -> str:
        if len(self._rules) >= self._most:
            return ""
        data = picture if isinstance(picture, bytes) else _thumbnail(picture)
        if not data or self._bytes + len(data) * 4 // 3 > MOST_BYTES:
            return ""
        self._bytes += len(data) * 4 // 3
        name = f"p{len(self._rules)}"
        encoded = base64.b64encode(data).decode()
        self._rules.append(f".{name}{{background-image:url(data:image/webp;base64,{encoded})}}")
        return name


def _thumbnail(path: Path) -> bytes:
    """A centered square of at most 144 pixels; empty where the file is missing or no picture."""
    from PIL import Image, ImageOps

    out = io.BytesIO()
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
            image = ImageOps.exif_transpose(opened).convert("RGB")
        side = min(THUMBNAIL_PX, *image.size)
        ImageOps.fit(image, (side, side)).save(out, "WEBP", quality=WEBP_QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    return out.getvalue()
