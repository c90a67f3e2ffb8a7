"""Parquet files, and the folders that `datasets` and img2dataset write: rows with images, captions,
further texts, labels and numbers."""

from __future__ import annotations

import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.batch import Broken, Lost
from vlkd_cli.data.caption_choice import Sources, checked_weights
from vlkd_cli.data.files.arrow_cells import (
    holds_bytes,
    holds_lists,
    holds_texts,
    image_problem,
    number_cells,
    plain_rows,
    plain_value,
    sourced,
    text_problem,
    value_problem,
)
from vlkd_cli.data.files.arrow_files import ArrowFiles, data_files
from vlkd_cli.data.files.cached_arrays import CACHE_ABOVE_BYTES, cached_arrays
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.named_texts import MAIN, checked_texts, span_of
from vlkd_cli.data.files.remote import expanded, fetch_bytes, is_url, joined, parent_of
from vlkd_cli.data.files.texts import clean_text, finite_number
from vlkd_cli.data.loading.order import Blocks
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.subset import checked_part, part_of
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import PositiveInt

IMAGES = ["image", "jpg", "jpeg", "png", "webp"]
_STATUS, _SUCCESS = "status", "success"
_LARGE_BYTES = 512 << 20
_TOGETHER_BYTES, _FEWEST_GROUPS, _MOST_GROUPS = 256 << 20, 4, 64


class Parquet(Reader):
    """Rows of Parquet files, or of the Arrow files in a folder of `datasets`.

    A row is read with its whole row group, so the shuffle is made for that: row groups come in
    random order, and the samples of several of them are shuffled among each other. Write images in
    row groups of a few hundred rows.

    Args:
        path: a file, several, a pattern (`*`, `{000..127}`), a URL, or a folder: of Parquet files,
            of `Dataset.save_to_disk`, or of img2dataset. `{split}` in it is replaced by `split`.
        image: column of the image, of several names the first that is there: encoded bytes, a path
            or URL, or the `bytes` and `path` of `datasets`; null: rows without images.
        caption: column of the caption (a text, or a list of them), or several columns; null: images
            without captions.
        caption_weights: how often each of several columns is chosen, in any unit; where the chosen
            one is empty, the next is taken. By default all captions of a row are equally likely.
        image_root: folder or URL that image paths are relative to; by default that of the file.
        texts: further texts of a row by name, each a column or several columns with wordings of the
            same text; `tower@NAME` reads them.
        target: column of a number, or several, for distillers that compare with `targets`.
        label: column of the class, a number or a name.
        id: column of what results call a row; by default its image's path, else file and row.
        shuffle_groups: row groups whose samples are shuffled among each other; by default as many
            as 256 MiB hold, 4 to 64.
        split: replaces `{split}` in `path`, or chooses among the splits of the folder.
        part: take only this part of the rows, in a fixed random order: `[0, 0.9]` to train on,
            `[0.9, 1]` to choose by.
    """

    offers_by_key: ClassVar[Mapping[str, str]] = {
        "image": "image",
        "caption": "text",
        "texts": "text",
        "label": "label",
        "target": "target",
    }
    has_columns = True

    def __init__(
        self,
        *,
        path: str | list[str],
        image: str | list[str] | None = IMAGES,
        caption: str | list[str] | None = "caption",
        caption_weights: list[float] | None = None,
        image_root: str | None = None,
        texts: dict[str, str | list[str]] | None = None,
        target: str | list[str] | None = None,
        label: str | None = None,
        id: str | None = None,
        shuffle_groups: PositiveInt | None = None,
        split: str | None = None,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.split, self.part = split, checked_part(part)
        self._files = files = ArrowFiles(data_files(path, split))
        named = checked_texts(texts)
        self._image = None if image is None else self._image_column(image)
        self._texts = {MAIN: self._columns(caption, "caption", text_problem)} | {
            name: self._columns(own, f"texts.{name}", text_problem) for name, own in named.items()
        }
        self._targets = self._columns(target, "target", value_problem)
        self._label, self._id = (
            None if name is None else self._columns(name, key, value_problem)[0]
            for key, name in (("label", label), ("id", id))
        )
        self.num_targets, self.text_names = len(self._targets), tuple(named)
        self.has_captions = any(self._texts.values())
        if self._image is None and not self.has_captions:
            raise DataError("data.image and data.caption are both null: name one of the columns.")
        if image_root is not None and not self._names_images():
            raise DataError(
                "data.image_root has no effect: the rows hold the images. Leave it out."
            )
        self.image_root = None if image_root is None else expanded(image_root)
        self.caption_weights = checked_weights(caption_weights, len(self._texts[MAIN]))
        self.weighs_captions = bool(self.caption_weights)
        texts_read = sorted(self._texts.items())
        self._settings = (self._image, texts_read, self._targets, self._label, self._id)
        self._index = cached_arrays(
            digest_of("parquet-2", files.version(), self._settings),
            self._arrays,
            store=sum(os.path.getsize(f) for f in files.files if os.path.isfile(f))
            > CACHE_ABOVE_BYTES,
        )
        self._starts = np.concatenate([[0], np.cumsum(self._index["groups"][:, 2])])
        self.lost = self._lost()
        if not len(self):
            reason = f": {self.lost[0].name}: {self.lost[0].reason}" if self.lost else ""
            raise DataError(f"data.path {path}: no row can be read{reason}.")
        self.blocks = self._together = self._blocks(shuffle_groups)
        self.classes = self._class_names()
        self._loaded: OrderedDict[tuple[int, bool], pa.Table] = OrderedDict()
        self._check_images()

    def opened(self) -> Reader:
        return part_of(self, self.part)

    def __len__(self) -> int:
        return len(self._index["rows"]) if "rows" in self._index else int(self._starts[-1])

    def image(self, index: int) -> bytes | str | None:
        if self._image is None:
            return None
        value = self._cell(index, self._image, is_image=True)
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") else value.get("path")
        if not value:
            raise Broken("the row has no image")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise Broken("its image is neither bytes nor a path")
        address = joined(self._root(index), value)
        return fetch_bytes(address) if is_url(address) else address

    def captions(self, index: int) -> Sequence[str]:
        return [text for own in self._texts_of(index).values() for _, text in own]

    def caption_sources(self, index: int) -> Sources:
        sources = [source for source, _ in self._texts_of(index)[MAIN]]
        return Sources(sources, self.caption_weights)

    def text_span(self, index: int, name: str = MAIN) -> tuple[int, int]:
        return span_of({key: len(own) for key, own in self._texts_of(index).items()}, name)

    def label(self, index: int) -> int:
        return int(self.labels_of(np.asarray([index]))[0])

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        if "labels" not in self._index:
            return np.full(len(indices), -1, dtype=np.int64)
        return self._index["labels"].take(indices)

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        return self._index["targets"][indices] if self._targets else super().targets_of(indices)

    def column(self, name: str) -> Sequence[str]:
        (column,) = self._columns(name, "column")
        cells = [row[column] for table in self._tables([column]) for row in plain_rows(table)]
        rows = self._index["rows"].tolist() if "rows" in self._index else range(len(cells))
        return ["" if cells[row] is None else clean_text(str(cells[row])) for row in rows]

    def name(self, index: int) -> str:
        group, offset = self._locate(index)
        file, number, _ = self._index["groups"][group].tolist()
        if self._image is not None and self._names_images():
            try:
                value = self._cell(index, self._image, is_image=True)
                value = value.get("path") if isinstance(value, dict) else value
                if value and isinstance(value, str):
                    return joined(self._root(index), value)
            except Broken:
                pass  # its row is left to name it by
        return f"{self._files.files[file]} group {number} row {offset}"

    def id(self, index: int) -> str:
        if self._id is None:
            return self.name(index)
        return str(self._cell(index, self._id))

    def fingerprint(self) -> str:
        files = ""
        if self._image is not None and holds_texts(self._type(self._image)):
            addresses = (self.name(index) for index in probed(len(self)))
            files = digest_files(address for address in addresses if not is_url(address))
        return digest_of("parquet", self._settings, self._files.digest(), files)

    def caption_start(self, index: int) -> int:
        return int(self.caption_starts(np.asarray([index]))[0])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        if not self.has_captions:
            return np.zeros(len(indices), dtype=np.int64)
        if "caption_starts" in self._index:
            return self._index["caption_starts"].take(indices)
        return np.asarray(indices, dtype=np.int64)

    # -- cells -----------------------------------------------------------------------------------

    def _locate(self, index: int) -> tuple[int, int]:
        """Group of a row, and its position in the group."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(index)
        row = index % count
        if "rows" in self._index:
            row = int(self._index["rows"][row])
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        return group, row - int(self._starts[group])

    def _cell(self, index: int, column: str, *, is_image: bool = False) -> Any:
        group, offset = self._locate(index)
        key = group, is_image
        if key not in self._loaded:
            while len(self._loaded) >= 4 * self._together.at_once:
                self._loaded.popitem(last=False)
            file, number, _ = self._index["groups"][group].tolist()
            columns = [self._image] if is_image else self._small_columns()
            self._loaded[key] = self._files.read(file, number, columns)  # type: ignore[arg-type]
        self._loaded.move_to_end(key)
        return plain_value(self._loaded[key][column][offset])

    def _small_columns(self) -> list[str]:
        columns = [name for own in self._texts.values() for name in own]
        return list(dict.fromkeys([*columns, *([] if self._id is None else [self._id])]))

    def _texts_of(self, index: int) -> dict[str, list[tuple[int, str]]]:
        """All texts of a row by name, each with the position of its column."""
        return {
            name: sourced([self._cell(index, column) for column in columns])
            for name, columns in self._texts.items()
        }

    def _root(self, index: int) -> str:
        if self.image_root is not None:
            return self.image_root
        return parent_of(self._files.files[int(self._index["groups"][self._locate(index)[0], 0])])

    def _names_images(self) -> bool:
        """Whether the image column may hold paths."""
        kind = None if self._image is None else self._type(self._image)
        return kind is not None and not holds_bytes(kind)

    def _type(self, column: str) -> pa.DataType:
        return self._files.type_of(column)

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        for file, number, _ in self._index["groups"].tolist():
            try:
                yield self._files.read(file, number, columns)
            except Broken as broken:
                raise DataError(f"{self._files.files[file]}: {broken}. Fetch it again.") from None

    # -- columns ---------------------------------------------------------------------------------

    def _columns(
        self,
        names: str | Sequence[str] | None,
        key: str,
        problem_of: Callable[[pa.DataType], str] = lambda _: "",
    ) -> list[str]:
        """Columns that a key names.

        Raises:
            DataError: one is missing, there twice, or holds what the key cannot read.
        """
        names = [names] if isinstance(names, str) else list(names or ())
        there = self._files.schema.names
        for name in names:
            if name not in there:
                raise DataError(
                    f"{self._files.files[0]} has no column '{name}'"
                    f" (data.{key}).{did_you_mean(name, there)} Its columns: {', '.join(there)}."
                )
            problem = problem_of(self._type(name)) if there.count(name) == 1 else "is there twice"
            if problem:
                raise DataError(f"{self._files.files[0]}: column '{name}' (data.{key}) {problem}.")
        return names

    def _image_column(self, image: str | Sequence[str]) -> str:
        names = [image] if isinstance(image, str) else list(image)
        found = next((name for name in names if name in self._files.schema.names), None)
        if found is not None:
            return self._columns(found, "image", image_problem)[0]
        tar = Path(self._files.files[0]).with_suffix(".tar")
        if tar.is_file():
            raise DataError(
                f"{self._files.files[0]} has no images: they are in {tar.name} next to it. Use"
                " reader webdataset with the same folder."
            )
        return self._columns(names[:1], "image")[0]

    # -- the index -------------------------------------------------------------------------------

    def _arrays(self, scratch: Path) -> dict[str, np.ndarray]:
        """Where the row groups are, and what one pass over the small columns finds."""
        arrays = self._files.find_groups(self._needed())
        counted = [name for own in self._texts.values() for name in own]
        is_counted = len(counted) > 1 or any(holds_lists(self._type(name)) for name in counted)
        has_status = self._image is not None and _STATUS in self._files.schema.names
        columns = [*self._targets, *(counted if is_counted else [])]
        columns += [*([_STATUS] if has_status else []), *([self._label] if self._label else [])]
        if not columns:
            return arrays
        good, counts, targets, labels = array("b"), array("I"), array("f"), list[object]()
        for table in self._readable(arrays, list(dict.fromkeys(columns))):
            for row in plain_rows(table):
                good.append(row.get(_STATUS, _SUCCESS) == _SUCCESS or not has_status)
                targets.extend(finite_number(row[name]) for name in self._targets)
                labels.append(None if self._label is None else row[self._label])
                if is_counted:
                    counts.append(self._num_texts(row))
        rows = np.arange(len(good))
        if any(good) and not all(good):
            rows = arrays["rows"] = np.flatnonzero(good)
        if is_counted:
            own_counts = np.array(counts, dtype=np.int64)[rows]
            arrays["caption_starts"] = np.concatenate([[0], np.cumsum(own_counts)])
        if self._targets:
            arrays["targets"] = np.array(targets).reshape(-1, len(self._targets))[rows]
            self._check_targets(arrays["targets"])
        if self._label:
            arrays |= self._numbered([labels[row] for row in rows.tolist()])
        return arrays

    def _needed(self) -> list[tuple[str, Callable[[pa.DataType], str]]]:
        """The columns that are read, and what each must not hold."""
        values = [*self._targets, *(name for name in (self._label, self._id) if name is not None)]
        return [
            *((name, image_problem) for name in (self._image,) if name is not None),
            *((name, text_problem) for own in self._texts.values() for name in own),
            *((name, value_problem) for name in values),
        ]

    def _readable(
        self, arrays: dict[str, np.ndarray], columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Each group of the arrays; those that cannot be read are taken out of them."""
        groups, lost = [], []
        for row, (file, number, count) in enumerate(arrays["groups"].tolist()):
            try:
                table = self._files.read(file, number, columns)
            except Broken:
                lost.append((file, number, count))
                continue
            groups.append(row)
            yield table
        arrays["groups"], arrays["bytes"] = arrays["groups"][groups], arrays["bytes"][groups]
        arrays["lost_groups"] = np.array(lost, dtype=np.int64).reshape(-1, 3)

    def _num_texts(self, row: Mapping[str, object]) -> int:
        """Texts of a row; none where one cannot be read, which breaks the row."""
        try:
            cells = ([row[name] for name in own] for own in self._texts.values())
            return sum(len(sourced(each)) for each in cells)
        except Broken:
            return 0

    def _check_targets(self, targets: np.ndarray) -> None:
        for name, column in zip(self._targets, targets.T, strict=True):
            if len(column) and not np.isfinite(column).any():
                raise DataError(
                    f"{self._files.files[0]}: column '{name}' (data.target) holds no finite number."
                )

    def _numbered(self, labels: Sequence[object]) -> dict[str, np.ndarray]:
        numbers, names = number_cells(labels, f"{self._files.files[0]}, data.label")
        found = {"labels": numbers}
        if names is not None:
            lines = "\n".join(name.replace("\n", " ") for name in names)
            found["class_names"] = np.frombuffer(lines.encode(), dtype=np.uint8)
        return found

    def _class_names(self) -> list[str] | None:
        """The names of the classes, as the column gives them or as `datasets` wrote them down."""
        if self._label is None:
            return None
        if "class_names" in self._index:
            return bytes(self._index["class_names"]).decode().split("\n")
        written = (self._files.schema.metadata or {}).get(b"huggingface")
        try:
            names = json.loads(written or "{}")["info"]["features"][self._label]["names"]
        except (ValueError, KeyError, TypeError):
            return None
        return names if isinstance(names, list) else None

    def _blocks(self, shuffle_groups: int | None) -> Blocks:
        starts = self._starts
        if "rows" in self._index:
            starts = np.searchsorted(self._index["rows"], starts)
        mean = max(1, int(self._index["bytes"].mean()))
        if mean > _LARGE_BYTES:
            console.warn_once(
                f"{self._files.files[0]}: its row groups hold {mean / 2**30:.1f} GiB each, and each"
                " loader worker reads several whole. Write the files with a smaller row_group_size."
            )
        at_once = min(max(_TOGETHER_BYTES // mean, _FEWEST_GROUPS), _MOST_GROUPS)
        return Blocks(np.unique(starts), shuffle_groups or int(at_once))

    def _lost(self) -> list[Lost]:
        files, lost = self._files.files, self._index["lost"].tolist()
        mean = max(1, round(len(self) / (len(files) - len(lost))))
        reason = "no such file, or it is not a file of this format"
        found = [Lost(files[file], reason, mean) for file in lost]
        groups = self._index["lost_groups"].tolist() if "lost_groups" in self._index else []
        return found + [
            Lost(f"{files[file]} group {number}", "it cannot be read", count)
            for file, number, count in groups
        ]

    def _check_images(self) -> None:
        """Paths that lead nowhere show in the first rows; later gaps are the loader's to count."""
        if "rows" in self._index:
            missing = int(self._starts[-1]) - len(self)
            console.warn_once(
                f"{self._files.files[0]}: {missing:,} rows of all files were not fetched"
                f" ({_STATUS}) and are left out."
            )
        if not self._names_images():
            return
        addresses = []
        for index in range(min(3, len(self))):
            try:
                image = self.image(index)
            except Broken:
                continue
            if not isinstance(image, str) or os.path.isfile(image):
                return
            addresses.append(image)
        if addresses:
            raise DataError(
                f"{self._files.files[0]}: its first images do not exist, e.g. {addresses[0]}. Set"
                " data.image_root to their folder."
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_loaded": OrderedDict()}
