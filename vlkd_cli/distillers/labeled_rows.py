"""What the objectives over labeled rows share: several outputs as rows of one set, the labels of
all ranks, and which pairs of rows belong together.

Rows of this rank are compared with the rows of all ranks, so no rank builds an N x N table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather, gather_without_grad, sum_without_grad
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.errors import DataError


class LabeledRows(NamedTuple):
    """This rank's unit rows next to those of all ranks."""

    own: Float[Tensor, "B D"]
    every: Float[Tensor, "N D"]
    positive: Bool[Tensor, "B N"]
    """Pairs of one class; a row is not its own positive."""
    negative: Bool[Tensor, "B N"]


def labeled_rows(
    outputs: Sequence[Float[Tensor, "B D"]],
    labels: Int[Tensor, " B"] | None,
    indices: Int[Tensor, " B"] | None,
    name: str,
) -> LabeledRows:
    """Stack the outputs, give each row its sample's class, and gather the rows of all ranks.

    A sample without a label (-1) is a class of its own, so several outputs of one sample are each
    other's positives and everything else is negative.

    Args:
        outputs: one or more outputs of the same samples.
        labels: of the samples; None where the data has none.
        indices: position of each sample in the data, which is its class if it has no label; None
            numbers the samples of the batch.
        name: of the objective, for the message.

    Raises:
        DataError: one output and no label at all, so no two rows belong together.
    """
    if labels is None and len(outputs) == 1:
        raise DataError(
            f"distiller '{name}' compares rows of one class, and the data has no labels. Read"
            " labeled data, or list two outputs of a sample (student: [text, text@answer])."
        )
    classes = classes_of(labels, indices, outputs[0]).repeat(len(outputs))
    own = unit(torch.cat(list(outputs)))
    every_class = gather_without_grad(classes)
    same = classes[:, None] == every_class[None, :]
    rows = torch.arange(len(own), device=own.device)
    positive = same.clone()
    positive[rows, rows + rank() * len(own)] = False
    return LabeledRows(own, gather(own), positive, ~same)


def mean_over_counted(total: Float[Tensor, ""], counted: Tensor) -> Float[Tensor, ""]:
    """This rank's part of a mean over the counted items of all ranks; 0 where there are none.

    Args:
        total: sum over this rank's items.
        counted: how many items this rank has.
    """
    return world_size() * total / sum_without_grad(counted).clamp_min(1)


def classes_of(
    labels: Int[Tensor, " B"] | None, indices: Int[Tensor, " B"] | None, like: Float[Tensor, "B D"]
) -> Int[Tensor, " B"]:
    """The class of each sample: its label, or below -1 a number of its own."""
    if indices is None:
        first = rank() * len(like)
        indices = torch.arange(first, first + len(like), device=like.device)
    # Below every label, and another for each sample of the data.
    alone = -2 - indices
    return alone if labels is None else torch.where(labels >= 0, labels, alone)
