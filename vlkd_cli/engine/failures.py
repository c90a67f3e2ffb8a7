"""Failures of libraries that a user can do something about, as one line."""

from __future__ import annotations

import torch

from vlkd_cli.errors import UserError
from vlkd_cli.recipe.load import recipe_from_json


def explained(error: Exception, recipe: str) -> UserError | None:
    """The line for a failure whose cause is known; None for any other.

    Args:
        error: its notes say at which step it came.
        recipe: as JSON.
    """
    text = str(error)
    where = "".join(f" at {note}" for note in getattr(error, "__notes__", [])[:1])
    settings = recipe_from_json(recipe).train
    batch_size = settings.batch_size
    chunk = max((settings.chunk or batch_size) // 4, 1)
    if _is_out_of_memory(error):
        # CUDA adds lines about every process on the card.
        first = (text.strip() or "out of memory").splitlines()[0].partition(". GPU")[0].rstrip(".")
        return UserError(
            f"{first}{where}. Set train.chunk: {chunk}, which computes the same step of"
            f" train.batch_size {batch_size} in less memory, or use train.precision: bf16 or"
            " smaller images. train.accumulate is another step: objectives compare the rows of one"
            " batch only."
        )
    if "Expected more than 1 value per channel when training" in text:
        return UserError(
            f"a batch norm that is trained got one row{where}: it needs at least two on each"
            f" process. Raise train.batch_size (now {batch_size}), freeze the tower, or set its"
            " freeze_batch_norm_stats."
        )
    return None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
