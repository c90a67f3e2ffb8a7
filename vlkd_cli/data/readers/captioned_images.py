"""What the readers of listed images have in common: paths below a root, each with its captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.caption_choice import Sources
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.remote import fetch_bytes, is_url, joined
from vlkd_cli.data.files.text_table import TextTable
from vlkd_cli.data.files.texts import clean_text
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.subset import checked_part, part_of


class CaptionedImages(Reader):
    """Images that are files, each with its captions; held as arrays.

    Args:
        root: what paths are relative to.
        paths: of the images.
        captions: of each image.
        sources: number of the source of each caption, one after another; None: one source.
        caption_weights: of the sources; empty: all captions of an image are equally likely.
        problems: why the captions of an image cannot be read, by its position.
        part: of the images that `opened` gives, as fractions of a fixed random order.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "text"})

    def __init__(
        self,
        root: str,
        paths: Iterable[str],
        captions: Iterable[Sequence[str]],
        problems: Mapping[int, str] | None = None,
        part: tuple[float, float] = (0.0, 1.0),
        *,
        sources: Sequence[int] | None = None,
        caption_weights: Sequence[float] = (),
    ) -> None:
        self.root, self.part, self._problems = root, checked_part(part), dict(problems or {})
        self._paths = TextTable(paths)
        self.caption_weights = tuple(caption_weights)
        self.weighs_captions = bool(self.caption_weights)
        self._sources = np.array(sources or (), dtype=np.uint8)
        counts: list[int] = []

        def flat() -> Iterable[str]:
            for own in captions:
                counts.append(len(own))
                yield from map(clean_text, own)

        self._texts = TextTable(flat())
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def opened(self) -> Reader:
        return part_of(self, self.part)

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> bytes | str:
        address = self.name(index)
        return fetch_bytes(address) if is_url(address) else address

    def captions(self, index: int) -> Sequence[str]:
        if index in self._problems:
            raise Broken(self._problems[index])
        start, stop = self._starts[index : index + 2].tolist()
        return self._texts.slice(start, stop)

    def caption_sources(self, index: int) -> Sources:
        start, stop = self._starts[index : index + 2].tolist()
        return Sources(self._sources[start:stop].tolist(), self.caption_weights)

    def name(self, index: int) -> str:
        return joined(self.root, self._paths[index])

    def fingerprint(self) -> str:
        files = digest_files(
            address for index in probed(len(self)) if not is_url(address := self.name(index))
        )
        return digest_of(
            type(self).__name__,
            self._paths.digest(),
            self._texts.digest(),
            self._starts.tobytes(),
            files,
        )

    def caption_start(self, index: int) -> int:
        return int(self._starts[index])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        starts: np.ndarray = self._starts[indices]
        return starts
