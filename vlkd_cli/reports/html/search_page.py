"""The page of a search: for each query, what was found, with thumbnails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image, ImageOps

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.decode import decode
from vlkd_cli.reports.html.pictures import WEBP_QUALITY, Gallery
from vlkd_cli.reports.html.write import write_page

THUMBNAIL_PX = 160
MOST_PICTURES = 400


class Answer(Protocol):
    """A row that was found."""

    @property
    def rank(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str | None: ...


class Row(NamedTuple):
    """A row as the page shows it; `picture` is the class of its thumbnail."""

    rank: int
    score: str
    id: str
    text: str
    picture: str


Picture = bytes | str | Image.Image | None
Answers = Sequence[tuple[str, Picture, Sequence[tuple[Answer, Picture]]]]
"""Of each query: its text or path, its picture where it is a file, and what it found with
pictures."""


def write_search_page(
    file: Path, *, title: str, subtitle: str, scores: str, answers: Answers
) -> None:
    """Write the page, which needs nothing else.

    Args:
        scores: what the scores are, e.g. cosine.

    Raises:
        UserError: the file cannot be written.
    """
    gallery = Gallery(MOST_PICTURES)
    shown = []
    for query, asked, found in answers:
        rows = []
        for own, picture in found:
            shows = gallery.add(thumbnail(picture))
            rows.append(Row(own.rank, f"{own.score:.4f}", own.id, own.text or "", shows))
        shown.append(
            {
                "query": query,
                "picture": None if asked is None else gallery.add(thumbnail(asked)),
                "rows": rows,
                "has_pictures": any(picture is not None for _, picture in found),
                "has_texts": any(own.text is not None for own, _ in found),
            }
        )
    context: dict[str, object] = {
        "title": title,
        "subtitle": subtitle,
        "scores": scores,
        "answers": shown,
        "tiles": [],
        "notes": [],
        "pictures": gallery,
    }
    write_page(file, "search.html", context, "--page")


def thumbnail(picture: Picture) -> bytes | None:
    """A centered square of at most 160 pixels as WebP; None where there is no picture, or it cannot
    be read."""
    if picture is None:
        return None
    try:
        image = Image.fromarray(decode(picture))
    except Broken:
        return None
    side = min(THUMBNAIL_PX, *image.size)
    out = io.BytesIO()
    ImageOps.fit(image, (side, side)).save(out, "WEBP", quality=WEBP_QUALITY)
    return out.getvalue()
