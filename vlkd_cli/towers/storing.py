"""A frozen tower whose features are being stored: it runs where a batch has images and hands out
what it found, and reads where the batch has features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlkd_cli.data.stored_view import FEATURES, IMAGES, ROWS, TABLES
from vlkd_cli.towers.outputs import BACKBONE, Output
from vlkd_cli.towers.tower import Tower


class Keep(Protocol):
    """Takes in features that were computed."""

    def __call__(self, tables: Tensor, rows: Tensor, features: Tensor) -> None: ...


class StoringTower(Tower):
    """The same tower on the inputs of a `data.stored_view.StoredView`.

    Args:
        original: whose parts it shares.
        keep: is given what the tower computed, `[N]` tables, `[N]` rows and `[N, feature_width]`;
            None: nothing is stored.

    Raises:
        ValueError: the original learns.
    """

    def __init__(self, original: Tower, keep: Keep | None) -> None:
        if not original.is_frozen:
            raise ValueError(f"tower '{original.name}' is trained; its features cannot be stored")
        nn.Module.__init__(self)
        self.__dict__.update(original.__dict__)
        self._keep = keep

    def _sources(
        self,
        inputs: Any,
        needed: Mapping[str, tuple[int, ...]],
        every: tuple[int, ...],
        hidden: Output | None,
    ) -> dict[str, Output]:
        if FEATURES in inputs:
            return {BACKBONE: Output(inputs[FEATURES], every).of(needed[BACKBONE])}
        # All pictures, since a later batch reads all of them.
        found = super()._sources(inputs[IMAGES], {BACKBONE: every}, every, hidden)
        features = found[BACKBONE].values.float()
        if self._keep is not None:
            self._store(inputs[TABLES], inputs[ROWS], features)
        return {BACKBONE: Output(features, every).of(needed[BACKBONE])}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _store(self, tables: Tensor, rows: Tensor, features: Tensor) -> None:
        assert self._keep is not None
        self._keep(tables, rows, features)
