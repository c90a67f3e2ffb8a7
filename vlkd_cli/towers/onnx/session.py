"""A tower whose vectors an ONNX file gives, for suites."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlkd_cli.builders.backbone import Backbone, Encoded
from vlkd_cli.preprocessing import ImageInput, Inputs, standardize
from vlkd_cli.towers.onnx.check import Session
from vlkd_cli.towers.onnx.graph import IMAGES, tokenizer_of
from vlkd_cli.towers.outputs import BACKBONE, Output
from vlkd_cli.towers.tower import Tower


class SessionBackbone(Backbone):
    """What onnxruntime gives for uint8 images, or for the ids of a tower's tokenizer."""

    def __init__(self, path: Path, like: Tower) -> None:
        super().__init__()
        self.modality, self.input, self.width = like.modality, tokenizer_of(like), like.width
        self.settings = hashlib.sha256(path.read_bytes()).hexdigest()
        self.session = Session(path)

    def run(self, inputs: Inputs, *, tokens: bool) -> Encoded:
        given = {IMAGES: inputs} if isinstance(inputs, Tensor) else inputs
        return Encoded(self.session.run(given)[0], None)


class SessionTower(Tower):
    """A tower of the same interface as the one that a file was written from; its only output is the
    file's vector."""

    def __init__(self, path: Path, like: Tower) -> None:
        super().__init__(like.name, SessionBackbone(path, like))

    def _sources(
        self,
        inputs: Inputs,
        needed: Mapping[str, tuple[int, ...]],
        every: tuple[int, ...],
        hidden: Output | None,
    ) -> dict[str, Output]:
        """The vectors; pixels go in as they are, as the file standardizes them itself."""
        if isinstance(inputs, Tensor):
            inputs = as_pixels(inputs, self.input)
        feature = self.encoder(inputs, tokens=False).feature
        assert feature is not None
        return {BACKBONE: Output(feature, every)}


def as_pixels(images: Tensor, expected: ImageInput) -> Tensor:
    """uint8 images `[B, 3, H, W]`; standardized ones, as some models' loaders deliver them, brought
    back to 256 levels."""
    if not images.is_floating_point():
        return images
    black, white = (
        standardize(torch.full((1, 3, 1, 1), level, dtype=torch.uint8), expected)
        for level in (0, 255)
    )
    levels = (images - black) / (white - black) * 255
    pixels = levels.round().clamp(0, 255).to(torch.uint8)
    return pixels.flip(1) if expected.channels == "bgr" else pixels
