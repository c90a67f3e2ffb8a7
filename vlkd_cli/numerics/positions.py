"""Fixed sine-cosine position embeddings of the cells of a grid."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sine_cosine(width: int, rows: int, columns: int) -> Float[Tensor, "T D"]:
    """Positions `[rows * columns, width]`, row by row: the first half of the width encodes the
    column, the second the row, each as sines, then cosines.

    Raises:
        ValueError: the width is not a multiple of 4.

    Source: He et al., MAE, facebookresearch/mae, util/pos_embed.py, whose first half is the column
    too.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides; got {width}")
    quarter = width // 4
    rates = 10000 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def axis(coordinates: Tensor) -> Tensor:
        angles = coordinates[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    down, across = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64),
        torch.arange(columns, dtype=torch.float64),
        indexing="ij",
    )
    return torch.cat([axis(across.flatten()), axis(down.flatten())], dim=1).float()
