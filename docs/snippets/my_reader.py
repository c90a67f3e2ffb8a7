"""A reader of one's own: see docs/add_a_reader.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlkd_cli.data.readers.captioned_images import CaptionedImages
from vlkd_cli.errors import DataError


class JSONLines(CaptionedImages):
    """A file with one JSON object per line: `{"image": "photos/1.jpg", "captions": ["a dog", "a
    brown dog"]}`.

    Args:
        path: the file; images are relative to its folder. `{split}` in it is replaced by `split`.
        split: "train", "val" or "test", where `path` has a place for it.
    """

    def __init__(self, *, path: str, split: str = "train") -> None:
        self.split = split
        file = Path(path.replace("{split}", split))
        rows = list(_rows(file))
        if not rows:
            raise DataError(f"data.path {file}: there is no line in it.")
        super().__init__(
            str(file.parent), (row["image"] for row in rows), (row["captions"] for row in rows)
        )


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"data.path {file} cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            yield {
                "image": str(row["image"]),
                "captions": [str(caption) for caption in row["captions"]],
            }
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}:{number}: expected an object with 'image' and 'captions' ({error})."
            ) from None
