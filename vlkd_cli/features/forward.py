"""Inputs through a tower that is evaluated: without gradients, in the precision asked for, and with
finite numbers only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vlkd_cli.errors import DataError
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.preprocessing import Inputs

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

PROJECTED_AT_ONCE = 4096


Stored = Literal["backbone", "head"]
"""Which output of a tower a table holds."""


def stored_output(tower: Tower, point: Stored) -> Stored:
    """What is stored to give an output: the backbone's feature, which serves any head over it; the
    head's own output where that reads tokens, pictures or inner layers."""
    graph = getattr(tower, "graph", None)
    if point == "backbone" or graph is None:
        return "backbone"
    sources = set(graph.needed({"head": (1,)})) - set(graph.links)
    return "backbone" if sources <= {"backbone"} else "head"


def features_of(
    subject: Subject, tower: Tower, inputs: Inputs, output: Stored = "backbone"
) -> Tensor:
    """Rows of an output, `[B, width]` float32 on the CPU."""
    with torch.no_grad(), autocast(subject.precision, subject.device):
        found = tower.encode(inputs) if output == "head" else tower.features(inputs)
        return found.float().cpu()


def project(subject: Subject, tower: Tower, features: Tensor) -> Tensor:
    """Apply the head to cached backbone features, in large batches; on every rank, since that
    costs less than an exchange."""
    projected = torch.empty(len(features), tower.width)
    with evaluating(tower), torch.no_grad(), autocast(subject.precision, subject.device):
        for start in range(0, len(features), PROJECTED_AT_ONCE):
            block = features[start : start + PROJECTED_AT_ONCE]
            projected[start : start + len(block)] = (
                tower.project(block.to(subject.device)).float().cpu()
            )
    insist_on_numbers(tower, projected)
    return projected


def insist_on_numbers(tower: Tower, features: Tensor) -> None:
    """Refuse NaN and infinity: no suite measures anything with them, and some would fail with
    unrelated errors.

    Raises:
        DataError: some are not finite.
    """
    wrong = int((~torch.isfinite(features).all(1)).sum())
    if wrong:
        raise DataError(
            f"{wrong} of {len(features)} features of tower '{tower.name}' hold NaN or infinity: its"
            " weights have diverged, or the precision is too low. Evaluate an earlier checkpoint,"
            " or with `--set train.precision=fp32`."
        )


@contextmanager
def evaluating(tower: nn.Module) -> Iterator[None]:
    """The tower in eval mode for a while; afterwards every part is in the mode that it was in."""
    modes = [(module, module.training) for module in tower.modules()]
    tower.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
