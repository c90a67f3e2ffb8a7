"""What ProtoCLIP needs of the features that it is given, before and after its first episode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlkd_cli.distillers.protoclip import ProtoCLIP
from vlkd_cli.recipe.types import Progress

INDICES = torch.arange(8)


def features(seed: int) -> list[Tensor]:
    """Backbone and head features of eight images and their captions."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 4, generator=generator).requires_grad_() for _ in range(4)]


@pytest.mark.parametrize(
    "weights",
    [{}, {"contrastive_weight": 0.0}, {"prototype_weight": 0.0}],
    ids=["both", "clusters", "pairs"],
)
def test_every_feature_takes_part_at_every_step_as_several_processes_need(
    weights: dict[str, float],
) -> None:
    distiller = ProtoCLIP(num_prototypes=2, contrastive_episodes=1, **weights)
    for epoch in (0, 1):
        image, image_head, text, text_head = inputs = features(epoch)
        detached = [each.detach() for each in inputs]
        distiller.start_episode(
            tuple(detached[:2]),
            tuple(detached[2:]),
            indices=INDICES,
            progress=Progress(step=epoch),
        )
        distiller((image, image_head), (text, text_head), indices=INDICES).backward()
        assert len(distiller.episode_indices) == 8 * epoch
        assert all(each.grad is not None for each in inputs)
        if epoch == 0:
            assert not image_head.grad.any() and not text_head.grad.any()  # type: ignore[union-attr]
