"""The encoder of DALL-E's discrete autoencoder, whose codes are targets of masked image modeling
(BEiT, CAE)."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.builders.backbone import (
    Backbone,
    BuildContext,
    Builder,
    Encoded,
    Export,
    ModelInfo,
    Tokens,
)
from vlkd_cli.builders.places import locate, weights_file
from vlkd_cli.builders.sizes import check_sizes
from vlkd_cli.builders.weight_files import read_weights
from vlkd_cli.builders.weights import fit_weights, write_weights
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.types import LibraryKeys, ModalityName, PositiveInt

NAME = "dalle_encoder"
GROUPS = 4
STRIDE = 2 ** (GROUPS - 1)
"""Pixels of the side of a position: every group but the last one halves the picture."""
SIZES = {"width": 256, "layers": 2, "codes": 8192}
"""DALL-E's: width of the first group, residual blocks of a group, entries of the codebook."""
LOGIT_LAPLACE = 0.1
"""Pixels between 0 and 1 are mapped to [0.1, 0.9] (DALL-E's `map_pixels`)."""


class DVAE(Builder):
    """The encoder of DALL-E's discrete autoencoder; its tokens are the logits of the codes.

    The feature is the mean of what the codes are read from. Pictures that the loader gives it are
    mapped as `map_pixels` of the original does.

    Args:
        pretrained: a file of weights, a state dict in the names of the package DALL-E (the
            published encoder.pkl is a pickled module, which cannot be read without running code:
            see docs/self_supervision.md); false: random weights.
        image_size: side in pixels that the tower sees, a multiple of 8; 112 gives the 14 x 14
            positions of a ViT/16 at 224.
        config: sizes that replace DALL-E's: width (256), layers of a group (2), codes (8192).

    Source: Ramesh et al., ICML 2021, arXiv:2102.12092, appendix A.1; openai/DALL-E,
    dall_e/encoder.py and dall_e/utils.py.
    """

    modalities = ("image",)

    def __init__(
        self,
        *,
        pretrained: bool | str = False,
        image_size: PositiveInt = 112,
        config: LibraryKeys | None = None,
    ) -> None:
        self.pretrained, self.image_size, self.config = pretrained, image_size, config or {}

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        what = "DALL-E's encoder"
        if self.image_size % STRIDE:
            raise RecipeError(
                f"{what}: image_size {self.image_size} is not a multiple of {STRIDE}. Choose e.g."
                f" {-(-self.image_size // STRIDE) * STRIDE}."
            )
        if self.pretrained is True:
            raise RecipeError(
                f"{what}: pretrained: true: there is nothing to download. Give a file of weights."
            )
        for key in self.config:
            if key not in SIZES:
                raise RecipeError(
                    f"{what}: config.{key}: unknown key.{did_you_mean(key, SIZES)} Accepted:"
                    f" {', '.join(SIZES)}."
                )
        check_sizes("dvae", self.config, tuple(SIZES))
        if self.config.get("width", 4) % 4:
            raise RecipeError(f"{what}: config.width: expected a multiple of 4.")
        backbone = DVAEImage(self.image_size, **{**SIZES, **self.config})
        if self.pretrained:
            file = weights_file(locate(self.pretrained, what), what)
            fit_weights(backbone.encoder, read_weights(file, what), what, source=self.pretrained)
        return backbone

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        if modality not in (None, "image") or pretrained_only or not fnmatch(NAME, pattern.lower()):
            return []
        width = SIZES["width"] * STRIDE
        return [ModelInfo(NAME, "dvae", "image", width=width, image_size_px=112)]


class DVAEImage(Backbone):
    """The encoder without the sampling of codes."""

    modality: ModalityName = "image"
    input: ImageInput

    def __init__(self, image_size: int, *, width: int, layers: int, codes: int) -> None:
        super().__init__()
        self.encoder = _Encoder(width, layers, codes)
        self.sizes = {"width": width, "layers": layers, "codes": codes}
        self.width, self.token_width = STRIDE * width, codes
        # (pixel - mean) / std = (1 - 2 * 0.1) * pixel + 0.1
        scale = 1 - 2 * LOGIT_LAPLACE
        self.input = ImageInput(
            size_px=(image_size, image_size),
            mean=(-LOGIT_LAPLACE / scale,) * 3,
            std=(1 / scale,) * 3,
        )
        self.settings = json.dumps(["dvae", image_size, width, layers, codes])

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        """The logits of the codes at each position, row by row."""
        *body, output = self.encoder.blocks
        places = inputs
        for part in body:
            places = part(places)
        feature = places.relu().mean((2, 3))
        if not tokens:
            return Encoded(feature, None)
        logits = output(places)
        return Encoded(feature, Tokens.of_places(logits.flatten(2).transpose(1, 2)))

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        file = "model.safetensors"
        write_weights(self.encoder.state_dict(), folder / file)
        width, layers, codes = (self.sizes[key] for key in SIZES)
        sizes = {key: keys[key] for key in ("image_size", "config") if keys.get(key)}
        return Export(
            "DALL-E",
            python=(
                f"model = dall_e.Encoder(n_hid={width}, n_blk_per_group={layers},"
                f" vocab_size={codes}); model.load_state_dict("
                f"safetensors.torch.load_file({str(destination / file)!r}))"
            ),
            recipe={"builder": "dvae", "pretrained": str(destination / file), **sizes},
            feature="model.blocks[:-1](images).relu().mean((2, 3))",
        )

    def layers(self) -> list[list[str]]:
        return [[f"blocks.group_{number + 1}."] for number in range(GROUPS)]


class _Convolution(nn.Module):
    """A convolution that preserves the size, its tensors called `w` and `b`."""

    def __init__(self, width_in: int, width: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(Tensor(width, width_in, side, side))
        self.b = nn.Parameter(Tensor(width).zero_())
        nn.init.normal_(self.w, std=(width_in * side**2) ** -0.5)
        self.padding = side // 2

    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.w, self.b, padding=self.padding)


class _Block(nn.Module):
    """Four convolutions and a shortcut; their weight falls with the depth of the network."""

    def __init__(self, width_in: int, width: int, num_blocks: int) -> None:
        super().__init__()
        inner = width // 4
        widths = [width_in, inner, inner, inner, width]
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for number, side in enumerate((3, 3, 3, 1), start=1):
            path[f"relu_{number}"] = nn.ReLU()
            path[f"conv_{number}"] = _Convolution(widths[number - 1], widths[number], side)
        self.res_path = nn.Sequential(path)
        self.id_path = nn.Identity() if width_in == width else _Convolution(width_in, width, 1)
        self.gain = 1 / num_blocks**2

    def forward(self, maps: Tensor) -> Tensor:
        summed: Tensor = self.id_path(maps) + self.gain * self.res_path(maps)
        return summed


class _Encoder(nn.Module):
    """`blocks` under the original's names: input, group_1 to group_4, output."""

    def __init__(self, width: int, layers: int, codes: int) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=_Convolution(3, width, 7))
        for group in range(GROUPS):
            out, width_in = width * 2**group, width * 2 ** max(group - 1, 0)
            blocks: OrderedDict[str, nn.Module] = OrderedDict(
                (
                    f"block_{number + 1}",
                    _Block(out if number else width_in, out, GROUPS * layers),
                )
                for number in range(layers)
            )
            if group < GROUPS - 1:
                blocks["pool"] = nn.MaxPool2d(2)
            parts[f"group_{group + 1}"] = nn.Sequential(blocks)
        output = OrderedDict(relu=nn.ReLU(), conv=_Convolution(width * STRIDE, codes, 1))
        parts["output"] = nn.Sequential(output)
        self.blocks = nn.Sequential(parts)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.blocks(images)
        return logits
