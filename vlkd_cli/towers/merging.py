"""Towers with their adapters merged into the weights: to be written, sharing what is not merged, or
to be averaged, as copies that may change."""

from __future__ import annotations

import copy

from vlkd_cli.builders.adapters.any_tower import merged
from vlkd_cli.towers.frozen import Frozen
from vlkd_cli.towers.tower import Tower


def merged_tower(tower: Tower) -> Tower:
    """The tower to be written: its adapter merged into the weights of a copy, and the rest shared.
    Itself where it has none, where builder 'adapters' attached it, or where it cannot be merged."""
    if not tower.encoder.adapter_name or hasattr(tower.encoder, "vlkd_prompts"):
        return tower
    twin = copy.copy(tower)
    twin._modules = {name: part for name, part in tower._modules.items() if name != "backbone"}
    twin.__dict__.pop("backbone", None)
    twin.backbone = Frozen(merged(tower.encoder))
    twin._held = [name for name in tower._held if not name.startswith("backbone")]
    return twin


def plain(tower: Tower) -> Tower:
    """The tower to be averaged: a copy with its adapter merged into the weights; itself where it
    has none.

    The mean of two updates B A is not the mean of B times the mean of A.

    Raises:
        WeightsError: the adapter cannot be merged.
    """
    if not tower.encoder.adapter_name:
        return tower
    twin = copy.deepcopy(tower)
    twin.backbone = merged(tower.encoder)
    if twin.section is not None:
        twin.section = twin.section.model_copy(update={"adapter": None})
    return twin
