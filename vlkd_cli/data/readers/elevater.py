"""A data set in ELEVATER's layout."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.readers.elevater_archive import Places
from vlkd_cli.data.readers.elevater_index import (
    check_class_order,
    read_coco,
    read_folders,
    read_label_map,
    read_lines,
)
from vlkd_cli.data.readers.elevater_sets import REGISTRY, locate
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError


class Elevater(Reader):
    """One data set of ELEVATER (or one that a root's `vision_datasets.json` describes), in the
    official row and column order.

    Three forms are read: index lines with `archive.zip@member` (stored or deflated, read in place)
    or plain paths, COCO json, and the Chinese-CLIP copy with a folder per class id and
    `index.json`.

    Args:
        root: folder that holds `classification/`, or the data sets' own folders.
        dataset: name, as in a submission (`oxford-flower-102`), a title (`Flowers102`) or the
            toolkit's config (`flower102`).
        split: which part. The toolkit never reads the official validation parts; it cuts its own
            from the training part.

    Raises:
        DataError: files are missing or damaged, or do not fit each other.

    Source: Elevater_Toolkit_IC @00d0af7 and vision-datasets 0.2.17 (formats only). Image files that
    are cut off are read as far as they go, as the toolkit does.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "text", "label"})
    salvages = True

    def __init__(
        self, *, root: str, dataset: str, split: Literal["train", "val", "test"] = "train"
    ) -> None:
        located = locate(Path(os.path.expanduser(root)), dataset)
        self.facts, self.folder, self.split = located.facts, located.folder, split
        facts = self.facts
        self.multi_label = facts.multi_label
        if located.layout == "folders":
            index = self.folder / split
            self.rows, self.order_source = read_folders(self.folder, split, facts.num_classes)
            names = self._names(self.folder / "label.txt")
        else:
            if split not in facts.splits:
                raise DataError(
                    f"data set '{facts.name}' has no part '{split}'. Parts:"
                    f" {', '.join(facts.splits)}."
                )
            index = self.folder / facts.splits[split].index
            self.order_source = "index file"
            if index.suffix == ".json":
                self.rows, names = read_coco(index, facts.num_classes, facts.multi_label)
            else:
                self.rows = read_lines(index, facts.num_classes, facts.multi_label)
                names = self._names(self.folder / (facts.label_map or "labels.txt"))
        self._check_size(index)
        self.class_names_confirmed = facts.classes is None or check_class_order(
            names, facts.classes, str(index)
        )
        self.classes: Sequence[str] = facts.classes or tuple(names)
        self.templates: Sequence[str] = facts.templates
        self.places = Places(self.folder, self.rows, index)
        counts = np.maximum(np.diff(self.rows.starts), 1) * len(self.templates)
        self._caption_starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)]).astype(
            np.int64
        )

    def _check_size(self, index: Path) -> None:
        """A registry that promises another number of images describes other files."""
        if not self.facts.is_registered or self.split not in self.facts.splits:
            return
        promised = self.facts.splits[self.split].num_images
        if promised is not None and promised != len(self.rows.paths):
            raise DataError(
                f"{index} lists {len(self.rows.paths)} images, and {REGISTRY} lists {promised}"
                f" ('{self.facts.name}', {self.split}). Use both from the same copy."
            )

    def _names(self, path: Path) -> Sequence[str]:
        # The official names are known; a file of them is needed only where they are not.
        if self.facts.classes is not None and not path.is_file():
            return self.facts.classes
        return read_label_map(path, self.facts.num_classes)

    def __len__(self) -> int:
        return len(self.rows.paths)

    def image(self, index: int) -> bytes | str:
        return self.places.read(index)

    def label(self, index: int) -> int:
        labels = self.rows.labels_of(index)
        return labels[0] if labels else -1

    def labels(self, index: int) -> Sequence[int]:
        return self.rows.labels_of(index)

    def targets(self) -> NDArray[np.int64]:
        """`[N]` labels, or `[N, C]` zeros and ones for multi-label data."""
        if not self.facts.multi_label:
            return self.rows.labels.astype(np.int64)
        answer = np.zeros((len(self), self.facts.num_classes), dtype=np.int64)
        answer[np.repeat(np.arange(len(self)), np.diff(self.rows.starts)), self.rows.labels] = 1
        return answer

    def captions(self, index: int) -> Sequence[str]:
        # A row without labels still trains: its captions name nothing in particular.
        names = [self.classes[label] for label in self.labels(index)] or ["thing"]
        return [template.replace("{}", name) for name in names for template in self.templates]

    def caption_start(self, index: int) -> int:
        return int(self._caption_starts[index])

    def caption_starts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._caption_starts[indices]

    def labels_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        answer = np.full(len(indices), -1, dtype=np.int64)
        first, last = self.rows.starts[indices], self.rows.starts[np.asarray(indices) + 1]
        answer[last > first] = self.rows.labels[first[last > first]]
        return answer

    def name(self, index: int) -> str:
        return str(self.folder / self.rows.path(index))

    def row_order_digest(self) -> str:
        """Digest of the rows' paths and labels in order, independent of the folder of the data."""
        digest = hashlib.sha256(self.rows.labels.tobytes() + self.rows.starts.tobytes())
        for path in self.rows.paths:
            digest.update(bytes(path) + b"\n")
        return digest.hexdigest()

    def class_order_digest(self) -> str:
        """Digest of the class names in column order."""
        return hashlib.sha256("\n".join(self.classes).encode()).hexdigest()

    def fingerprint(self) -> str:
        table = self.places.table
        content = b"".join(
            np.ascontiguousarray(table[field]).tobytes() for field in ("size", "crc")
        )
        captions = "\n".join((*self.classes, *self.templates))
        return hashlib.sha256(
            self.row_order_digest().encode() + content + captions.encode()
        ).hexdigest()
