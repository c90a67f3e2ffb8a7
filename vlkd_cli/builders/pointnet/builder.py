"""PointNet++: an encoder of the points on a mesh's surface."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vlkd_cli import console
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
from vlkd_cli.builders.pointnet.encoder import Encoder
from vlkd_cli.builders.pointnet.sizes import SIZES, Sizes, sizes_of
from vlkd_cli.builders.weight_files import read_weights
from vlkd_cli.builders.weights import fit_weights, write_weights
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import MeshInput
from vlkd_cli.recipe.types import LibraryKeys, ModalityName, PositiveInt

FEWEST_NEIGHBORS = 4
"""With fewer points expected in a ball, most balls hold their center alone."""


class PointNet(Builder):
    """PointNet++ over points of a mesh, with random weights or those of a file.

    The feature is the maximum over the whole cloud after the third stage; the classifier of the
    authors is a head: `mlp`. Tokens are the centers of the second stage.

    Args:
        model: `ssg` groups points at one scale, `msg` at three.
        points: read of each mesh; the default radii are for 1,024 points of the unit sphere.
        normals: read the normals of the surface too.
        pretrained: a file of weights, as `vlkd export` writes it; false: random weights.
        config: sizes that replace the model's: `centers`, `neighbors` and `radii` of the first two
            stages (lists of a stage are scales), `widths` of the three, and `width`, a factor on
            all channels.

    Source: Qi et al., PointNet++, NeurIPS 2017, arXiv:1706.02413, appendix B.1;
    charlesq34/pointnet2, models/pointnet2_cls_ssg.py and pointnet2_cls_msg.py. Differs in applying
    the first layer of a stage before grouping, which gives the same values.
    """

    modalities = ("mesh",)

    def __init__(
        self,
        *,
        model: Literal["ssg", "msg"] = "ssg",
        points: PositiveInt = 1024,
        normals: bool = False,
        pretrained: bool | str = False,
        config: LibraryKeys | None = None,
    ) -> None:
        self.model, self.points, self.normals = model, points, normals
        self.pretrained, self.config = pretrained, config or {}

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        what = "builder 'pointnet'"
        if self.pretrained is True:
            raise RecipeError(
                f"{what}: pretrained: true: there is nothing to download. Give a file of weights."
            )
        sizes = sizes_of(self.model, self.config)
        backbone = PointNetMesh(self.model, MeshInput(self.points, self.normals), sizes)
        if sizes.centers[0] > self.points:
            raise RecipeError(
                f"{what}: {sizes.centers[0]} centers of the first stage are more than the"
                f" {self.points} points. Lower config.centers, e.g. to [{max(self.points // 2, 1)},"
                f" {max(self.points // 8, 1)}], or raise points."
            )
        radius = max(sizes.radii[0])
        # On a sphere's surface, a ball of radius r around one of its points covers r^2 / 4 of it.
        if (expected := self.points * radius**2 / 4) < FEWEST_NEIGHBORS:
            console.warn_once(
                f"tower '{context.tower}': with {self.points} points, a ball of radius {radius:g}"
                f" holds {expected:.1f} on average, so most centers see themselves alone. Raise"
                " points or config.radii."
            )
        if self.pretrained:
            file = weights_file(locate(self.pretrained, what), what)
            fit_weights(backbone.encoder, read_weights(file, what), what, source=self.pretrained)
        return backbone

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        if modality not in (None, "mesh") or pretrained_only:
            return []
        rows = []
        for name in SIZES:
            if fnmatch(name, pattern.lower()):
                with torch.device("meta"):
                    backbone = PointNetMesh(name, MeshInput(), sizes_of(name, {}))
                count = sum(parameter.numel() for parameter in backbone.parameters())
                rows.append(ModelInfo(name, "pointnet", "mesh", backbone.width, count))
        return rows


class PointNetMesh(Backbone):
    """The encoder without a classifier."""

    modality: ModalityName = "mesh"
    input: MeshInput

    def __init__(self, model: str, expected: MeshInput, sizes: Sizes) -> None:
        super().__init__()
        self.input = expected
        self.encoder = Encoder(sizes, 3 if expected.normals else 0)
        self.width, self.token_width = self.encoder.width, self.encoder.token_width
        self.settings = json.dumps(["pointnet", model, *expected, *sizes])

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        """Points `[B, N, 3 or 6]`; the tokens are unordered."""
        feature, centers = self.encoder(inputs)
        return Encoded(feature, Tokens.of_places(centers) if tokens else None)

    def layers(self) -> list[list[str]]:
        return [[f"{stage}."] for stage in ("first", "second", "third")]

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        file = "model.safetensors"
        write_weights(self.encoder.state_dict(), folder / file)
        own = {key: keys[key] for key in ("model", "points", "normals", "config") if keys.get(key)}
        recipe = {"builder": "pointnet", **own, "pretrained": str(destination / file)}
        return Export(
            "vlkd",
            python=f"encoder = vlkd_cli.load({str(destination)!r})",
            recipe=recipe,
            feature="the maximum over the cloud after the third stage",
            note="no other library has a format for PointNet++.",
        )
