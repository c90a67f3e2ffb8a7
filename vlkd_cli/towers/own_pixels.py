"""Whether pictures reach an encoder as its library's own image processor prepares them."""

from __future__ import annotations

import numpy as np
import torch

from vlkd_cli.builders.backbone import OTHER_PROCESSOR, Backbone
from vlkd_cli.data.images.resize import fit
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput, standardize

SMALL = (37, 53)
"""Height and width of a picture that most encoders see enlarged."""
MOST_LEVELS = 2.0
"""Gray levels by which rounding may make pixels differ."""


def check_pixels(backbone: Backbone, what: str) -> None:
    """Compare two pictures of noise, one that is reduced and one that is enlarged, as vlkd's loader
    and as the library's image processor prepare them.

    Args:
        what: the tower, for messages.

    Raises:
        RecipeError: they differ, so the processor does something that vlkd does not know.
    """
    expected = backbone.input
    if not isinstance(expected, ImageInput):
        return
    height, width = expected.size_px
    # Odd sides and odd differences, where rules for crops and rounding part.
    for size in ((2 * height + 77, width + 29), SMALL):
        picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        theirs = backbone.library_pixels(picture)
        if theirs is None:
            return
        ours = standardize(fit(picture, expected)[None], expected)[0]
        if ours.shape != theirs.shape:
            difference = f"gives {list(theirs.shape)} instead of {list(ours.shape)}"
        else:
            levels = (ours - theirs).abs().amax((1, 2)) * torch.tensor(expected.std) * 255
            if bool((levels <= MOST_LEVELS).all()):
                continue
            difference = f"differs by up to {float(levels.max()):.0f} gray levels"
        raise RecipeError(
            f"{what}: its image processor prepares pictures in a way that vlkd does not have: a"
            f" picture of {size[0]} x {size[1]} pixels {difference}. {OTHER_PROCESSOR}"
        )
