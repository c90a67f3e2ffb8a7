"""A tower whose features were computed before: it runs only its head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vlkd_cli.towers.frozen import Frozen
from vlkd_cli.towers.tower import Tower


class StoredTower(Tower):
    """The same tower with stored rows for inputs; head and pooler are the original's own objects,
    so that training one trains the other.

    Raises:
        ValueError: the original's features change in training.
    """

    def __init__(self, original: Tower) -> None:
        if not original.cacheable:
            raise ValueError(
                f"tower '{original.name}' learns below its head; its features cannot be stored"
            )
        nn.Module.__init__(self)
        assert isinstance(original.backbone, Frozen)
        self.name, self.modality, self.image_input = (
            original.name,
            original.modality,
            original.image_input,
        )
        self.width, self.feature_width = original.width, original.feature_width
        self.backbone, self.pooler, self.head = original.backbone, original.pooler, original.head
        self._layer_of, self._num_backbone_layers = (
            original._layer_of,
            original._num_backbone_layers,
        )
        self._tokenize, self._digest = original._tokenize, original.digest()
        self._held = original._held

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredTower:
        # The backbone stays where it is: nothing runs it here.
        nn.Module._apply(self, fn, recurse)
        return self

    def features(self, inputs: Any) -> Tensor:
        """The stored rows as they are, `[B, feature_width]`."""
        return inputs.to(
            next((parameter.dtype for parameter in self.head.parameters()), inputs.dtype)
        )
