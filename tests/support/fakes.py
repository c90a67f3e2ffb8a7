"""Readers and towers that honor the contracts and cost nothing: pictures are one color that encodes
the position."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone, Encoded
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.preprocessing import ImageInput, TextInput


class FakeReader(Reader):
    """Pictures whose color encodes their position, so that a fake tower can know any feature of
    them by heart.

    Args:
        labels: a label per picture, or a tuple of them.
        captions: captions per picture; by default one that names the position.
        classes: class names in label order.
        name: sets the fingerprint apart.
        offset: the first picture's number; splits of one data set show different pictures.
    """

    def __init__(
        self,
        labels: Sequence[int | tuple[int, ...]],
        captions: Sequence[Sequence[str]] | None = None,
        classes: Sequence[str] | None = None,
        name: str = "fake",
        offset: int = 0,
        split: str = "val",
    ) -> None:
        self._labels = list(labels)
        self._captions = [
            list(own) for own in captions or [[f"picture {offset + i}"] for i in range(len(labels))]
        ]
        self.classes = list(classes) if classes is not None else None
        self.split = split
        self._name = name
        self._offset = offset
        self._starts = np.concatenate(
            [[0], np.cumsum([len(own) for own in self._captions])]
        ).astype(int)

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8), color_of(self._offset + index))

    def captions(self, index: int) -> Sequence[str]:
        return self._captions[index]

    def label(self, index: int) -> int:
        own = self._labels[index]
        return own if isinstance(own, int) else (own[0] if own else -1)

    def labels(self, index: int) -> Sequence[int]:
        own = self._labels[index]
        return (own,) if isinstance(own, int) else own

    def name(self, index: int) -> str:
        return f"{self._name}/{self._offset + index}"

    def fingerprint(self) -> str:
        return hashlib.sha256(
            repr((self._name, self._offset, self._labels, self._captions)).encode()
        ).hexdigest()

    def caption_start(self, index: int) -> int:
        return int(self._starts[index])

    @property
    def num_captions(self) -> int:
        return int(self._starts[-1])


class Colored(FakeReader):
    """A fake reader with recipe keys, for a suite's `data:`: `num_classes` classes in turn, two
    captions a picture.

    The training pictures are others than the validation pictures.
    """

    def __init__(
        self,
        *,
        num_classes: int = 8,
        num_samples: int = 480,
        split: str = "val",
        several: bool = False,
    ) -> None:
        offset = {"val": 0, "test": 1024, "train": 2048}[split]
        labels: list[int | tuple[int, ...]] = [
            position % num_classes for position in range(num_samples)
        ]
        if several:
            labels = [
                (position % num_classes, (position // 3) % num_classes)
                for position in range(num_samples)
            ]
        captions = [
            [f"picture {offset + i}", f"again picture {offset + i}"] for i in range(num_samples)
        ]
        classes = [f"kind {number}" for number in range(num_classes)]
        super().__init__(
            labels, captions, classes, name=f"colored-{num_classes}", offset=offset, split=split
        )


COLORED = "tests.support.fakes:Colored"


class Grouped(Colored):
    """The same, every fourth picture in group b and the others in group a."""

    has_groups = True

    def group(self, index: int) -> str:
        return "b" if index % 4 == 0 else "a"


GROUPED = "tests.support.fakes:Grouped"


def color_of(position: int) -> tuple[int, int, int]:
    """The color of the picture at a position; steps of 16 survive rounding."""
    return (position % 16 * 16, position // 16 % 16 * 16, position // 256 * 16)


def position_of(images: Tensor) -> list[int]:
    """The positions that uint8 images `[B, 3, H, W]` show."""
    red, green, blue = (images.float().mean((2, 3)) / 16).round().long().unbind(1)
    return (red + green * 16 + blue * 256).tolist()


class FakeTower(nn.Module):
    """A tower that looks its features up; counts how many inputs it was given.

    Args:
        modality: "image" or "text".
        feature: a picture's number, or a text, to its feature.
        width: length of the feature.
        head: what projects it; by default nothing.
    """

    def __init__(
        self,
        modality: str,
        feature: Callable[[Any], Tensor],
        width: int,
        head: nn.Module | None = None,
        name: str = "",
        output_width: int = 0,
    ) -> None:
        super().__init__()
        self.name = name or modality
        self.modality = modality
        self.input = ImageInput(size_px=(8, 8)) if modality == "image" else letters
        self.feature_width = width
        self.width = output_width or width
        self.backbone = nn.Identity()
        self.pooler = None
        self.head = head if head is not None else nn.Identity()
        self.encoded = 0
        self._feature = feature

    def features(self, inputs: Any) -> Tensor:
        keys = position_of(inputs) if self.modality == "image" else read_texts(inputs)
        self.encoded += len(keys)
        return torch.stack([self._feature(key) for key in keys])

    def project(self, features: Tensor) -> Tensor:
        return self.head(features)

    def encode(self, inputs: Any) -> Tensor:
        return self.project(self.features(inputs))

    forward = encode

    def digest(self) -> str:
        return f"{self.name}-{self.modality}-{self.feature_width}"


class TableBackbone(Backbone):
    """A backbone that looks the picture's position up in a table, and has one weight to learn."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.modality, self.width, self.settings = "image", table.shape[1], "table"
        self.input = ImageInput(size_px=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.register_buffer("table", table)
        self.scale = nn.Parameter(torch.ones(()))

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        assert isinstance(self.table, Tensor)
        return Encoded(self.table[torch.tensor(position_of(inputs * 255))] * self.scale, None)


def letters(texts: Sequence[str]) -> TextInput:
    """A tokenizer: one token for each letter."""
    longest = max(map(len, texts))
    ids = [[ord(letter) for letter in text] + [0] * (longest - len(text)) for text in texts]
    return {"input_ids": torch.tensor(ids)}


def read_texts(inputs: TextInput) -> list[str]:
    """The strings that a fake tower's tokens stand for."""
    return ["".join(chr(code) for code in row if code) for row in inputs["input_ids"].tolist()]


def random_feature(width: int, seed: int = 0) -> Callable[[Any], Tensor]:
    """A feature that depends on its key only, and on nothing that matters."""

    def feature(key: Any) -> Tensor:
        digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
        return torch.randn(
            width, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        )

    return feature
