"""What objectives with a learned row per class share."""

from __future__ import annotations

import torch
from torch import nn

from vlkd_cli.errors import RecipeError


def class_weights(num_classes: int, width: int) -> nn.Parameter:
    """`[num_classes, width]` from N(0, 1 / width), the same on every rank whatever its random
    state."""
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(num_classes, width, generator=generator) * width**-0.5)


def require_num_classes(name: str, num_classes: int, highest_label: int | None) -> None:
    """Refuse labels that have no row.

    Raises:
        RecipeError: the data has a label without a class; names the number to set.
    """
    if highest_label is not None and highest_label >= num_classes:
        raise RecipeError(
            f"the data has labels up to {highest_label}, and num_classes of distiller '{name}' is"
            f" {num_classes}. Set num_classes: {highest_label + 1}."
        )
