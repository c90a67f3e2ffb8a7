"""A frozen tower whose features are being stored: it runs where a batch has images and hands out
what it found, and reads where the batch has features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from vlkd_cli.data.stored_view import FEATURES, IMAGES, ROWS, TABLES
from vlkd_cli.preprocessing import Inputs
from vlkd_cli.recipe.types import TableType
from vlkd_cli.towers.outputs import BACKBONE, Output
from vlkd_cli.towers.tower import Tower


class Write(Protocol):
    """Takes in features that were computed."""

    def __call__(self, tables: Tensor, rows: Tensor, features: Tensor) -> None: ...


class StoringTower(Tower):
    """The same tower on the inputs of a `data.stored_view.StoredView`.

    Args:
        original: whose parts it shares.
        write: receives what the tower computed, `[N]` tables, `[N]` rows and `[N, D]`; None:
            nothing is stored.
        outputs: of the backbone that are stored, one row of each joined to D values: its feature,
            and pooled inner layers.
        dtype: of the tables; what is stored is rounded before it is read, in every pass.

    Raises:
        ValueError: the original learns.
    """

    def __init__(
        self,
        original: Tower,
        write: Write | None,
        outputs: Sequence[str] = (BACKBONE,),
        dtype: TableType = "float32",
    ) -> None:
        if not original.is_frozen:
            raise ValueError(f"tower '{original.name}' is trained; its features cannot be stored")
        nn.Module.__init__(self)
        self.__dict__.update(original.__dict__)
        self._write, self._dtype = write, dtype
        self.stored_outputs = tuple(outputs)

    def _sources(
        self,
        inputs: Inputs,
        needed: Mapping[str, tuple[int, ...]],
        every: tuple[int, ...],
        hidden: Output | None,
    ) -> dict[str, Output]:
        assert isinstance(inputs, dict), "inputs of a StoredView"
        if FEATURES in inputs:
            features = inputs[FEATURES]
        else:
            # All outputs of all pictures, since a later batch reads all of them.
            wanted = dict.fromkeys(self.stored_outputs, every)
            found = super()._sources(inputs[IMAGES], wanted, every, hidden)
            values = [found[name].values.float() for name in self.stored_outputs]
            features = torch.cat(values, dim=-1)
            if self._write is not None:
                features = features.bfloat16().float() if self._dtype == "bfloat16" else features
                self._store(inputs[TABLES], inputs[ROWS], features)
        parts = features.split([self.width_of(name) for name in self.stored_outputs], dim=-1)
        return {
            name: Output(part, every).of(needed[name])
            for name, part in zip(self.stored_outputs, parts, strict=True)
            if name in needed
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _store(self, tables: Tensor, rows: Tensor, features: Tensor) -> None:
        assert self._write is not None
        self._write(tables, rows, features)
