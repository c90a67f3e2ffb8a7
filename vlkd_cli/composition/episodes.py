"""The start of an episode: samples of the coming epoch are encoded for the distillers that cluster
them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.composition.composition import Composition, Objective
from vlkd_cli.composition.passes import encode, plan
from vlkd_cli.data.batch import Batch
from vlkd_cli.recipe.address import Address, Side
from vlkd_cli.recipe.types import Progress


def is_episode_due(composition: Composition, progress: Progress) -> bool:
    """Whether any distiller sees the samples of the coming epoch before its first step."""
    return bool(_due(composition, progress))


def _due(composition: Composition, progress: Progress) -> list[Objective]:
    return [
        objective
        for objective in composition.objectives
        if objective.arrow.episode is not None and objective.distiller.is_episode_due(progress)
    ]


@torch.no_grad()
def start_episode(
    composition: Composition, batches: Iterable[Batch], progress: Progress
) -> list[nn.Parameter]:
    """Encode batches in eval mode and hand the features to the distillers that want them.

    Args:
        batches: on the composition's device; what `input_keys(episode=True)` names is read.
        progress: where training is.

    Returns:
        Parameters that were initialized again, equal on all ranks; their optimizer state must be
        dropped.
    """
    objectives = _due(composition, progress)
    addresses = [one for objective in objectives for one in objective.arrow.episode_addresses()]
    passes = plan(addresses)
    collected: dict[Address, list[Tensor]] = {address: [] for address in addresses}
    indices: list[Tensor] = []
    was_training = composition.training
    composition.eval()
    try:
        for batch in batches:
            found = encode(passes, composition.all_towers, (), batch, progress)
            indices.append(batch.indices)
            for address, parts in collected.items():
                parts.append(found[address].values.float())
    finally:
        composition.train(was_training)
    features = {address: torch.cat(parts) for address, parts in collected.items()}
    rows = torch.cat(indices)
    renewed: list[nn.Parameter] = []
    with torch.autocast(rows.device.type, enabled=False):
        for objective in objectives:
            renewed += _start(objective, features, rows, progress)
    return renewed


def _start(
    objective: Objective, features: dict[Address, Tensor], rows: Tensor, progress: Progress
) -> list[nn.Parameter]:
    def read(side: Side) -> Tensor | tuple[Tensor, ...]:
        # An address is itself a tuple, so it is asked for first.
        return features[side] if isinstance(side, Address) else tuple(features[one] for one in side)

    assert objective.arrow.episode is not None
    sides = objective.arrow.episode._asdict().items()
    read_sides = {name: read(side) for name, side in sides if side is not None}
    start: Any = objective.distiller.start_episode
    return list(start(**read_sides, indices=rows, progress=progress))
