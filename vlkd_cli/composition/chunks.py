"""Encoding a large batch piece by piece, with the activations of one piece in memory at a time.

Forward keeps no activations of a trained tower; backward takes piece after piece, last first: it
runs the piece again with its random state, computes its gradients and frees it. To autograd this
is one graph, so distillers see all rows at once, a parameter's hooks fire once, and neither the
trainer nor DistributedDataParallel know of it. Dropout of a piece is the same in both runs.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup
(GradCache), arXiv:2101.06983, by way of Chen et al., Training Deep Nets with Sublinear Memory Cost,
arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vlkd_cli.errors import RecipeError

Run = Callable[[Any, Tensor | None], dict[str, Tensor]]


def encode_in_chunks(
    run: Run, inputs: object, hidden: Tensor | None, *, size: int, learns: bool
) -> dict[str, Tensor]:
    """What `run` gives for all inputs, computed for `size` of them at a time.

    Args:
        run: a tower's forward for one pass.
        inputs: `[N, ...]` pictures, or a TextInput of N texts.
        hidden: `[N, T]` hidden places, or None.
        size: inputs of a piece, a multiple of the pictures of a sample.
        learns: whether gradients are needed; otherwise every piece runs once.
    """
    pieces = []
    for rows, places in _pieces(inputs, hidden, size):
        if learns:
            pieces.append(checkpoint(run, rows, places, use_reentrant=False))
        else:
            pieces.append(run(rows, places))
        # Pieces that share autocast's copy of a weight would add their gradients in 16 bits.
        torch.clear_autocast_cache()
    return {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}


def _joined(pieces: list[Tensor]) -> Tensor:
    """Outputs of all pieces. Selected places are `[n, m, E]` where a piece has as many of each
    picture, and become `[M, E]` where another piece has not."""
    if len({piece.shape[1:] for piece in pieces}) > 1:
        pieces = [piece.flatten(0, 1) if piece.ndim == 3 else piece for piece in pieces]
    return torch.cat(pieces)


def refuse_batch_statistics(name: str, tower: nn.Module) -> None:
    """Refuse batch norms that would see a piece instead of the batch.

    Raises:
        RecipeError: the tower has one in training mode; names it and what to do.
    """
    was_training = tower.training
    tower.train()
    learning = [
        place
        for place, module in tower.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    ]
    tower.train(was_training)
    if learning:
        raise RecipeError(
            f"train.chunk: tower '{name}' has trainable batch norms ({learning[0]}), and their"
            " statistics would be those of a chunk, not of the batch. Use a model and heads"
            " without batch norms, freeze the model (train: head or none), or remove train.chunk."
        )


def _pieces(inputs: Any, hidden: Tensor | None, size: int) -> Iterator[tuple[Any, Tensor | None]]:
    count = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
    for first in range(0, count, size):
        part = slice(first, first + size)
        rows = (
            inputs[part]
            if isinstance(inputs, Tensor)
            else {key: value[part] for key, value in inputs.items()}
        )
        yield rows, None if hidden is None else hidden[part]
