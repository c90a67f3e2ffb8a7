"""The start of an episode: what the coming epoch will show, seen by the distillers that cluster
it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.composition.composition import Composition
from vlkd_cli.data.batch import Batch
from vlkd_cli.recipe.address import Address, Side
from vlkd_cli.recipe.types import Progress


def has_episodes(composition: Composition) -> bool:
    """Whether any distiller sees the samples of an epoch before its first step."""
    return any(objective.arrow.episode is not None for objective in composition.objectives)


@torch.no_grad()
def start_episode(
    composition: Composition, batches: Iterable[Batch], progress: Progress
) -> list[nn.Parameter]:
    """Embed the samples of the coming epoch in eval mode and give them to the distillers that
    cluster them.

    Args:
        batches: of the epoch, on the composition's device.

    Returns:
        Parameters that were drawn again; what an optimizer remembers of them has no meaning.
    """
    composition.eval()
    wanted = [each for each in composition.objectives if each.arrow.episode is not None]
    indices: list[Tensor] = []
    columns: dict[Address, list[Tensor]] = {
        address: [] for objective in wanted for address in objective.arrow.episode_addresses()
    }
    for batch in batches:
        indices.append(batch.indices)
        for address, column in columns.items():
            column.append(composition.encode(address, batch.inputs[address.input_key]).float())
    rows = {address: torch.cat(column) for address, column in columns.items()}

    def read(side: Side) -> Tensor | tuple[Tensor, ...]:
        # An address is itself a tuple, so it is asked for first.
        return rows[side] if isinstance(side, Address) else tuple(rows[each] for each in side)

    renewed: list[nn.Parameter] = []
    for objective in wanted:
        assert objective.arrow.episode is not None
        sides = {
            name: read(side)
            for name, side in objective.arrow.episode._asdict().items()
            if side is not None
        }
        start: Any = objective.distiller.start_episode
        # Encoding may run in 16 bits; clustering does not.
        with torch.autocast(indices[0].device.type, enabled=False):
            renewed += start(**sides, indices=torch.cat(indices), progress=progress)
    composition.train()
    return renewed
