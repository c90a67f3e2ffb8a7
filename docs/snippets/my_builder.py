"""A builder of one's own: see docs/add_a_builder.md."""

from __future__ import annotations

from fnmatch import fnmatch

from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone, BuildContext, Builder, Encoded, ModelInfo, Tokens
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.types import ModalityName, PositiveInt


class PatchMixer(Backbone):
    """Patches, a few residual blocks, the mean over all patches.

    Args:
        width: of the feature.
        depth: blocks.
        size_px: side of the images it sees.
    """

    def __init__(self, width: int, depth: int, size_px: int) -> None:
        super().__init__()
        self.modality = "image"
        self.width = self.token_width = width
        self.input = ImageInput(size_px=(size_px, size_px))  # the loader resizes and crops to this
        self.settings = (  # goes into the key of stored features
            f"patch_mixer/{width}/{depth}/{size_px}"
        )
        self.patches = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width),
                nn.Conv2d(width, width, 3, padding=1, groups=width),
                nn.GELU(),
                nn.Conv2d(width, width, 1),
            )
            for _ in range(depth)
        )

    def run(self, images: Tensor, *, tokens: bool) -> Encoded:
        """Feature and tokens of standardized images `[B, 3, H, W]`, from one run."""
        patches = self.patches(images)
        for block in self.blocks:
            patches = patches + block(patches)
        return Encoded(patches.mean((2, 3)), Tokens.of_places(patches.flatten(2).transpose(1, 2)))

    def layers(self) -> list[list[str]]:
        return [[f"blocks.{number}"] for number in range(len(self.blocks))]


class MyBuilder(Builder):
    """Image towers made of patches and depthwise convolutions, with random weights.

    Args:
        width: of the feature.
        depth: blocks.
        size_px: side of the images it sees; a multiple of 8.
    """

    modalities = ("image",)

    def __init__(
        self, *, width: PositiveInt = 128, depth: PositiveInt = 4, size_px: PositiveInt = 64
    ) -> None:
        self.width, self.depth, self.size_px = width, depth, size_px

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        return PatchMixer(self.width, self.depth, self.size_px)

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        wanted = modality != "text" and not pretrained_only and fnmatch("patch_mixer", pattern)
        return (
            [ModelInfo("patch_mixer", "my_builder", "image", width=128, image_size_px=64)]
            if wanted
            else []
        )
