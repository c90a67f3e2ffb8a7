"""The patches of a picture themselves, as targets of masked objectives."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt


class PatchHead(nn.Module):
    """The pixels of each patch of a picture, standardized as the encoder sees them. Has no weights.

    The values of a patch are in the order row, column, channel.

    Args:
        patch_px: side of a patch in pixels; by default that of the encoder's grid.
        normalize: subtract each patch's mean and divide by its standard deviation, all channels
            together.

    Source: He et al., Masked Autoencoders, arXiv:2111.06377, section 3; facebookresearch/mae,
        models_mae.py: patchify and forward_loss (unbiased variance plus 1e-6).
    """

    formula = r"y_t = \frac{p_t - \mathrm{mean}(p_t)}{\sqrt{\mathrm{var}(p_t) + 10^{-6}}}"
    has_weights = False

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        patch_px: PositiveInt | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if patch_px is None:
            if grid is None:
                raise ValueError("this encoder has no grid to take `patch_px` from; set it")
            patch_px = grid.patch_px
        self.patch_px = patch_px
        self.normalize = normalize
        self.width = width_in * self.patch_px**2

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T E"]:
        patches = self.split(images)
        if not self.normalize:
            return patches
        mean, std = self.statistics(patches)
        return (patches - mean) / std

    def split(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T E"]:
        """The pixels of each patch, by row, column and channel.

        Raises:
            ValueError: patches do not divide the pictures.
        """
        batch, channels, height, width = images.shape
        side = self.patch_px
        if height % side or width % side:
            raise ValueError(
                f"patches of {side} px do not divide pictures of {height} x {width} px"
            )
        windows = images.view(batch, channels, height // side, side, width // side, side)
        return windows.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, self.width)

    def join(
        self, patches: Float[Tensor, "B T E"], size: Sequence[int]
    ) -> Float[Tensor, "B 3 H W"]:
        """The pictures of height and width `size` whose patches these are; undoes `split`."""
        side = self.patch_px
        squares = patches.view(len(patches), size[0] // side, size[1] // side, side, side, -1)
        return squares.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, *size)

    @staticmethod
    def statistics(
        patches: Float[Tensor, "*N E"],
    ) -> tuple[Float[Tensor, "*N 1"], Float[Tensor, "*N 1"]]:
        """Mean and standard deviation by which each patch is normalized."""
        return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
