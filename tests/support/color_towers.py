"""Real towers that are tiny and know colors: an image's feature is its mean color, a text's the
color that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.elevater_root import COLORS
from vlkd_cli.builders.backbone import Backbone, Encoded
from vlkd_cli.preprocessing import ImageInput, TextInput
from vlkd_cli.towers.tower import Tower

INPUT = ImageInput(size_px=(12, 12), mean=(0.5, 0.45, 0.35), std=(0.3, 0.3, 0.3))


class ColorImages(Backbone):
    """Mean color after a learnable 1 x 1 convolution that starts as the identity, or at random."""

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.modality, self.width, self.input = "image", 3, INPUT
        self.settings = f"colors {knows}"
        self.convolution = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.convolution.bias.zero_()  # type: ignore[union-attr]
            if not knows:
                self.convolution.weight.normal_(generator=torch.Generator().manual_seed(5))

    def run(self, inputs: Any, *, tokens: bool) -> Encoded:
        return Encoded(self.convolution(inputs).mean((2, 3)), None)


class ColorTexts(Backbone):
    """The color that a text names, standardized as the images are."""

    def __init__(self) -> None:
        super().__init__()
        self.modality, self.width, self.input = "text", 3, color_ids
        self.settings = "color words"
        colors = torch.tensor([(0, 0, 0), *COLORS.values()]) / 255
        self.words = nn.Embedding.from_pretrained(
            (colors - torch.tensor(INPUT.mean)) / torch.tensor(INPUT.std), freeze=False
        )

    def run(self, inputs: Any, *, tokens: bool) -> Encoded:
        return Encoded(self.words(inputs["input_ids"][:, 0]), None)


def color_ids(texts: Sequence[str]) -> TextInput:
    """The number of the first color word in each text."""
    ids = [
        next((number for number, word in enumerate(COLORS, start=1) if word in text), 0)
        for text in texts
    ]
    return {"input_ids": torch.tensor(ids).view(-1, 1)}


class RandomHead(nn.Module):
    """Gives every row a random feature, whatever it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        return torch.randn(len(features), self.width, generator=torch.Generator().manual_seed(0))


def color_towers(*, knows: bool = True, frozen: bool = True) -> tuple[Tower, Tower]:
    """An image and a text tower; `knows: False` gives an image tower with random weights."""
    image, text = ColorImages(knows), ColorTexts()
    return Tower("image", image.requires_grad_(not frozen)), Tower(
        "text", text.requires_grad_(not frozen)
    )


class MobileNet(Backbone):
    """torchvision's MobileNetV2 with weights of a file, its features averaged."""

    def __init__(self, weights: Path) -> None:
        from safetensors.torch import load_file
        from torchvision.models import mobilenet_v2

        super().__init__()
        self.modality, self.width, self.settings = "image", 1280, "mobilenet_v2"
        self.input = ImageInput(
            (224, 224),
            256,
            interpolation="bilinear",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )
        model = mobilenet_v2()
        model.load_state_dict(load_file(weights))
        self.encoder = model.features

    def run(self, inputs: Any, *, tokens: bool) -> Encoded:
        return Encoded(self.encoder(inputs).mean((2, 3)), None)


def mobilenet_tower(weights: Path) -> Tower:
    """A frozen image tower that knows ImageNet."""
    return Tower("image", MobileNet(weights).requires_grad_(False))
