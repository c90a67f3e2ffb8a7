"""A reader of one's own: see docs/add_a_reader.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlkd_cli.data.files.texts import parse_json, read_text, split_lines, text_of
from vlkd_cli.data.readers.captioned_images import CaptionedImages
from vlkd_cli.data.readers.reader import with_split
from vlkd_cli.errors import DataError


class JSONLines(CaptionedImages):
    """A file with one JSON object per line: `{"image": "photos/1.jpg", "captions": ["a dog", "a
    brown dog"]}`.

    Args:
        path: the file; images are relative to its folder. `{split}` in it is replaced by `split`.
        split: "train", "val" or "test", which replaces `{split}` in `path`.
    """

    def __init__(self, *, path: str, split: str | None = None) -> None:
        file = Path(with_split(path, split)).expanduser()
        rows = list(_rows(file))
        if not rows:
            raise DataError(f"data.path {file}: it has no lines.")
        super().__init__(
            str(file.parent), (image for image, _ in rows), (captions for _, captions in rows)
        )


def _rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(split_lines(read_text(file)), start=1):
        try:
            row = parse_json(line)
            yield text_of(row["image"]), [text_of(caption) for caption in row["captions"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}:{number}: expected an object with 'image' and 'captions' ({error})."
            ) from None
