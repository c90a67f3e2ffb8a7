"""Pictures that a caller has at hand."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vlkd_cli.data.readers.reader import Reader


class Pictures(Reader):
    """Pictures by position: encoded bytes, paths, or PIL images. Their features are cached for one
    call at most."""

    def __init__(self, items: Sequence[bytes | str | Image.Image]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def image(self, index: int) -> bytes | str | Image.Image:
        return self._items[index]

    def name(self, index: int) -> str:
        item = self._items[index]
        return item if isinstance(item, str) else f"item {index}"

    def fingerprint(self) -> str:
        return "items of one call"
