"""Delimited text files (csv, tsv) with columns of image and mesh paths, captions, further texts,
labels and numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.caption_choice import Sources, checked_weights
from vlkd_cli.data.files.cached_arrays import CACHE_ABOVE_BYTES, CachedArrays, cached_arrays
from vlkd_cli.data.files.class_numbers import number_labels
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.named_texts import MAIN, checked_texts, span_of
from vlkd_cli.data.files.remote import expanded, fetch_bytes, is_url, joined, parent_of
from vlkd_cli.data.files.row_groups import group_rows, row_key
from vlkd_cli.data.files.table import Table
from vlkd_cli.data.files.texts import clean_text, finite_number
from vlkd_cli.data.meshes.clouds import Clouds
from vlkd_cli.data.meshes.points import NUM_POINTS
from vlkd_cli.data.readers.reader import Reader, with_split
from vlkd_cli.data.readers.subset import checked_part, part_of
from vlkd_cli.errors import DataError

_FIRST_FILES = 3


class CSV(Reader):
    """Rows of a csv or tsv file. Rows are read from the disk when they are asked for, so a file of
    any length takes no memory.

    Args:
        path: the file, or a URL that fsspec reads (s3://, https://, ...); `{split}` in it is
            replaced by `split`.
        image: column of the image's path or URL; null: rows without images.
        mesh: column of the path of a mesh file.
        caption: column of the caption, or several columns; null: images without captions.
        caption_weights: how often each of several columns is chosen, in any unit; where the chosen
            one is empty, the next is taken. By default all captions of a sample are equally likely.
        sep: what separates the columns; by default a comma in .csv files and a tab elsewhere.
        image_root: folder or URL that paths of images and meshes are relative to; by default the
            folder of the table.
        encoding: of the table.
        caption_separator: mark between several captions in one cell.
        group: column of the group that a sample belongs to, for figures by group. Or whether rows
            that name the same image are one sample with several captions, false: each row is a
            sample; by default true, but for tables with `texts`, `target` or `mesh`, or without
            images.
        texts: further texts of a sample by name, each a column or several columns with wordings of
            the same text; `tower@NAME` reads them.
        target: column of a number, or several, for distillers that compare with `targets`.
        label: column of the class. Numbers below 100,000 are class numbers; longer ones are ids,
            numbered by size; names are numbered in alphabetical order.
        id: column of what results call a sample; by default the path of its image or mesh.
        quotes: whether a quote at the beginning of a field opens a quoted one.
        split: replaces `{split}` in `path`.
        part: take only this part of the images, in a fixed random order: `[0, 0.9]` to train on,
            `[0.9, 1]` to choose by.
    """

    offers_by_key: ClassVar[Mapping[str, str]] = {
        "image": "image",
        "mesh": "mesh",
        "caption": "text",
        "texts": "text",
        "label": "label",
        "group": "group",
        "target": "target",
    }
    has_columns = True

    def __init__(
        self,
        *,
        path: str,
        image: str | None = "filepath",
        mesh: str | None = None,
        caption: str | list[str] | None = "title",
        caption_weights: list[float] | None = None,
        sep: str | None = None,
        image_root: str | None = None,
        encoding: str = "utf-8",
        caption_separator: str | None = None,
        group: bool | str | None = None,
        texts: dict[str, str | list[str]] | None = None,
        target: str | list[str] | None = None,
        label: str | None = None,
        id: str | None = None,
        quotes: bool = True,
        split: str | None = None,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        path = expanded(with_split(path, split))
        self.path, self.split, self.caption_separator = path, split, caption_separator
        self._table = table = Table(path, sep=sep, encoding=encoding, quotes=quotes)

        def columns(names: str | list[str] | None, key: str) -> list[int]:
            names = [names] if isinstance(names, str) else names or []
            return [table.column(name, key) for name in names]

        named = checked_texts(texts)
        self._image = None if image is None else table.column(image, "image")
        self._mesh = None if mesh is None else table.column(mesh, "mesh")
        self._label = None if label is None else table.column(label, "label")
        self._id = None if id is None else table.column(id, "id")
        self._group_column = table.column(group, "group") if isinstance(group, str) else None
        self.has_groups = self._group_column is not None
        self._targets = columns(target, "target")
        self._texts = {MAIN: columns(caption, "caption")} | {
            name: columns(own, f"texts.{name}") for name, own in named.items()
        }
        self.num_targets, self.text_names = len(self._targets), tuple(named)
        self.caption_weights = checked_weights(caption_weights, len(self._texts[MAIN]))
        self.weighs_captions = bool(self.caption_weights)
        self.has_captions = any(self._texts.values())
        if image is None and mesh is None and not self.has_captions:
            raise DataError("data.image and data.caption are both null: name one of the columns.")
        _check_effects(image or mesh, image_root, caption_separator, self.has_captions)
        merges = None if isinstance(group, str) else group
        self._group = _checked_group(
            merges, texts=named, target=target, mesh=mesh, no_image=image is None
        )
        self._settings = (
            *(image, caption, table.sep, encoding, caption_separator, self._group, label, quotes),
            *(sorted(named.items()), target, id, mesh),
            *([group] if isinstance(group, str) else []),
        )
        self._index = table.index = cached_arrays(
            digest_of("rows-2", table.version(), self._settings),
            self._arrays,
            store=table.file.stat().st_size > CACHE_ABOVE_BYTES,
        )
        self._num_samples = len(table)
        if "group_starts" in self._index:
            self._num_samples = len(self._index["group_starts"]) - 1
        self.image_root = parent_of(path) if image_root is None else expanded(image_root)
        if "class_names" in self._index:
            self.classes = bytes(self._index["class_names"]).decode().split("\n")
        if image is not None:
            self._check_images(image_root)
        self._clouds = None if mesh is None else Clouds(self._mesh_files(), NUM_POINTS)
        self.part = checked_part(part)

    def opened(self) -> Reader:
        return part_of(self, self.part)

    def __len__(self) -> int:
        return self._num_samples

    def image(self, index: int) -> bytes | str | None:
        if self._image is None:
            return None
        address = self._address(index)
        return fetch_bytes(address) if is_url(address) else address

    def mesh(self, index: int) -> np.ndarray | None:
        return None if self._clouds is None else self._clouds[index]

    def captions(self, index: int) -> Sequence[str]:
        rows = [self._table.fields(row) for row in self._rows(index)]
        return [
            clean_text(cell)
            for columns in self._texts.values()
            for fields in rows
            for cell in self._cells(fields, columns)
        ]

    def caption_sources(self, index: int) -> Sources:
        rows = [self._table.fields(row) for row in self._rows(index)]
        columns = self._texts[MAIN]
        sources = [source for fields in rows for source, _ in self._sourced(fields, columns)]
        return Sources(sources, self.caption_weights)

    def text_span(self, index: int, name: str = MAIN) -> tuple[int, int]:
        if not self.text_names:
            return super().text_span(index, name)
        fields = self._table.fields(int(self._rows(index)[0]))
        counts = {key: len(self._cells(fields, own)) for key, own in self._texts.items()}
        return span_of(counts, name)

    def label(self, index: int) -> int:
        return int(self._index["labels"][index]) if "labels" in self._index else -1

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        if "labels" not in self._index:
            return np.full(len(indices), -1, dtype=np.int64)
        return self._index["labels"].take(indices)

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        return self._index["targets"][indices] if self._targets else super().targets_of(indices)

    def column(self, name: str) -> Sequence[str]:
        column, cells = self._table.column(name), list[str]()
        for index in range(len(self)):
            try:
                cells.append(clean_text(self._table.fields(int(self._rows(index)[0]))[column]))
            except Broken:
                cells.append("")  # the loader reports the row
        return cells

    def group(self, index: int) -> str:
        if self._group_column is None:
            return super().group(index)
        row = int(self._rows(index)[0])
        name = clean_text(self._table.fields(row)[self._group_column]).strip()
        if not name:
            raise DataError(
                f"{self._table.row_name(row)}: its group is empty. Name one, e.g. 'none', or take"
                " the row out."
            )
        return name

    def name(self, index: int) -> str:
        try:
            if self._image is not None:
                return self._address(index)
            if self._clouds is not None and self._clouds.paths[index]:
                return self._clouds.paths[index]
        except Broken:
            pass  # the row's number is left to name it by
        return self._table.row_name(int(self._rows(index)[0]))

    def id(self, index: int) -> str:
        if self._id is None:
            return self.name(index)
        return self._table.fields(int(self._rows(index)[0]))[self._id].strip()

    def caption_start(self, index: int) -> int:
        return int(self.caption_starts(np.asarray([index]))[0])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        if not self.has_captions:
            return np.zeros(len(indices), dtype=np.int64)
        if "caption_starts" in self._index:
            return self._index["caption_starts"].take(indices)
        return np.asarray(indices, dtype=np.int64)

    def fingerprint(self) -> str:
        has_files = self._image is not None or self._mesh is not None
        addresses = (self.name(index) for index in probed(len(self)) if has_files)
        files = digest_files(address for address in addresses if not is_url(address))
        return digest_of("csv", self._settings, bytes(self._index["digest"]), files)

    def _address(self, index: int) -> str:
        assert self._image is not None
        value = self._table.fields(int(self._rows(index)[0]))[self._image].strip()
        if not value:
            raise Broken("the row names no image")
        return joined(self.image_root, value)

    def _mesh_files(self) -> list[str]:
        """The path of each sample's mesh; empty where its row names none or is broken."""
        assert self._mesh is not None
        files = []
        for index in range(len(self)):
            try:
                cell = self._table.fields(int(self._rows(index)[0]))[self._mesh].strip()
            except Broken:
                cell = ""
            files.append(joined(self.image_root, cell) if cell else "")
        if not any(os.path.isfile(file) for file in files[:_FIRST_FILES]):
            first = next((file for file in files if file), "none is named")
            raise DataError(
                f"table {self.path}: its first meshes do not exist, e.g. {first}. Set"
                " data.image_root to their folder."
            )
        return files

    def _rows(self, index: int) -> Sequence[int] | np.ndarray:
        """Rows of the table (0: the first below the header) that make up a sample."""
        count = self._num_samples
        if not -count <= index < count:
            raise IndexError(index)
        index %= count
        if "group_starts" not in self._index:
            return (index,)
        first, last = self._index["group_starts"][index : index + 2]
        return self._index["grouped_rows"][first:last]

    def _cells(self, fields: Sequence[str], columns: Sequence[int]) -> list[str]:
        """The texts in these columns of a row; where there may be several, empty ones do not
        count."""
        return [cell for _, cell in self._sourced(fields, columns)]

    def _sourced(self, fields: Sequence[str], columns: Sequence[int]) -> list[tuple[int, str]]:
        """`_cells`, each with the position of its column."""
        cells = [(source, fields[column]) for source, column in enumerate(columns)]
        if self.caption_separator is not None:
            cells = [
                (source, part.strip())
                for source, cell in cells
                for part in cell.split(self.caption_separator)
            ]
        elif len(columns) == 1:
            return cells
        return [(source, cell) for source, cell in cells if cell.strip()]

    def _arrays(self, scratch: Path) -> dict[str, np.ndarray]:
        """The index: where rows begin, and what one pass over them finds."""
        arrays = self._table.find(scratch)
        self._table.index = CachedArrays(arrays)
        count = len(self._table)
        is_counted = self.caption_separator is not None or [
            len(columns) for columns in self._texts.values()
        ] != [1]
        keys = np.zeros(count if self._group else 0, dtype=np.uint64)
        counts = np.ones(count, dtype=np.int64)
        targets = np.full((count, self.num_targets), np.nan, dtype=np.float32)
        labels: list[str] = []
        if not (self._group or is_counted or self._targets or self._label is not None):
            return arrays
        for row in range(count):
            try:
                fields = self._table.fields(row)
            except Broken:
                # The row stays, as an image of its own that cannot be read: the loader counts and
                # names it.
                fields = None
            if self._group:
                assert self._image is not None
                keys[row] = row_key(f"broken row {row}" if fields is None else fields[self._image])
            if is_counted:
                own = [] if fields is None else self._texts.values()
                counts[row] = sum(len(self._cells(fields or [], columns)) for columns in own)
            if self._label is not None:
                labels.append("" if fields is None else clean_text(fields[self._label]).strip())
            if fields is not None:
                targets[row] = [finite_number(fields[column]) for column in self._targets]
        groups = group_rows(keys) if self._group else None
        if groups is not None:
            arrays |= {"grouped_rows": groups.rows, "group_starts": groups.starts}
            counts = groups.sums(counts)
            labels = [labels[row] for row in groups.first_rows()] if labels else labels
        if is_counted or groups is not None:
            arrays["caption_starts"] = np.concatenate([[0], np.cumsum(counts)])
        if self._targets:
            arrays["targets"] = targets
        if self._label is not None:
            arrays["labels"], names = number_labels(labels, f"table {self.path}, data.label")
            if names is not None:
                lines = "\n".join(name.replace("\n", " ") for name in names)
                arrays["class_names"] = np.frombuffer(lines.encode(), dtype=np.uint8)
        return arrays

    def _check_images(self, image_root: str | None) -> None:
        """A wrong image root shows in the first rows; later gaps are the loader's to count."""
        root = self.image_root
        if image_root is not None and not is_url(root) and not os.path.isdir(root):
            raise DataError(f"data.image_root {image_root}: no such folder.")
        addresses, broken = [], None
        for index in range(min(_FIRST_FILES, len(self))):
            try:
                addresses.append(self._address(index))
            except Broken as error:
                broken = error
        if not addresses:
            raise DataError(
                f"{broken}. Check data.sep, data.quotes and data.encoding, or repair the row."
            )
        if not any(is_url(address) or os.path.isfile(address) for address in addresses):
            raise DataError(
                f"table {self.path}: its first images do not exist, e.g. {addresses[0]}. Set"
                " data.image_root to their folder."
            )


def _check_effects(
    image: str | None, image_root: str | None, caption_separator: str | None, has_captions: bool
) -> None:
    if image is None and image_root is not None:
        raise DataError("data.image_root has no effect with data.image: null. Leave it out.")
    if caption_separator is not None and not has_captions:
        raise DataError(
            "data.caption_separator has no effect with data.caption: null. Leave it out."
        )


def _checked_group(group: bool | None, **alone: object) -> bool:
    """Whether rows of one image are one sample.

    Args:
        alone: keys whose rows are samples of their own, by whether they are set.
    """
    key = next((key for key, is_set in alone.items() if is_set), None)
    if group and key is not None:
        key = "image: null" if key == "no_image" else key
        raise DataError(
            f"data.group: true does not go with data.{key}: each row is a sample. Leave group out."
        )
    return key is None if group is None else group
