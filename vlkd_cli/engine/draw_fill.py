"""Stored teachers outside of training steps: rows that a pass over the data left out, and whole
tables ahead of a run (`vlkd cache fill`)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vlkd_cli import console
from vlkd_cli.composition.composition import Composition
from vlkd_cli.composition.passes import encode, plan
from vlkd_cli.data.batch import Batch
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.distributed import runtime
from vlkd_cli.errors import RecipeError
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.preprocessing import Inputs
from vlkd_cli.recipe.address import MAIN_VIEW, Address
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.types import Precision, Progress
from vlkd_cli.towers.outputs import BACKBONE
from vlkd_cli.towers.storing import StoringTower


class DrawFill:
    """Runs stored towers on rows that lack features, in batches of the same size as a step's, so
    that the features are the same to the last bit.

    Args:
        composition: with the stored towers.
        loader: of what a step reads.
        batches: that an epoch takes of it.
    """

    def __init__(
        self,
        composition: Composition,
        loader: Loader,
        device: torch.device,
        *,
        batches: int,
        precision: Precision,
    ) -> None:
        self.composition, self.loader, self.device = composition, loader, device
        self.batches, self.precision = batches, precision
        # One of the outputs that are stored; the tower computes all of them.
        stored = {
            name: tower.stored_outputs[0]
            for name, tower in composition.all_towers.items()
            if isinstance(tower, StoringTower)
        }
        keys = [key.partition("@") for key in loader.rows.views.stored_views]
        self._passes = plan(
            Address(name, stored.get(name, BACKBONE), view or MAIN_VIEW) for name, _, view in keys
        )

    def complete(self, epoch: int) -> None:
        """Store what a finished epoch left out because it does not fill a step."""
        rows, draws = self.loader.rows.left_out(epoch, self.batches)
        # A rank must not see rows as missing that another one is about to write.
        runtime.barrier()
        self.fill(rows, draws)
        runtime.barrier()

    def fill(self, rows: np.ndarray, draws: np.ndarray) -> int:
        """Store the features of rows under augmentations where they are missing; this rank's part.

        Returns:
            How many were missing.
        """
        data = self.loader.rows
        own = slice(runtime.rank(), None, runtime.world_size())
        rows, draws = rows[own], draws[own]
        missing = data.missing(rows, draws)
        for batch in self.loader.images_of(rows[missing], draws[missing]):
            if len(batch):
                self._encode(_filled_up(batch, self.loader.batch_size).to(self.device))
        return int(missing.sum())

    @torch.no_grad()
    def _encode(self, batch: Batch) -> None:
        composition = self.composition
        start = Progress(0, 1, 1)
        with autocast(self.precision, self.device):
            encode(self._passes, composition.all_towers, (), batch, start, composition.chunk)


def fill_ahead(source: str, overrides: Sequence[str] = ()) -> None:
    """Store all that the towers of a recipe with `cache: {draws: K}` will read.

    Raises:
        UserError: the recipe has problems, or no such tower.
    """
    from vlkd_cli.engine.build import build_training

    recipe = load_recipe(source, overrides, to_train=1)
    specs = [tower.draws for tower in recipe.towers.values() if tower.draws and tower.draws.store]
    if not specs:
        raise RecipeError(
            f"{source}: no tower has `cache: {{draws: K}}`, so there is nothing to fill."
        )
    with tempfile.TemporaryDirectory(prefix="vlkd-fill-") as folder:
        training = build_training(recipe, runtime.pick_device("auto"), run_folder=Path(folder))
    filling = training.draw_fill()
    if filling is None:
        return  # texts alone, which building stores
    rows = np.arange(len(training.loader.rows.reader), dtype=np.int64)
    for draw in range(specs[0].draws):
        new = filling.fill(rows, np.full(len(rows), draw, dtype=np.int64))
        console.say(
            f"Augmentation {draw + 1} of {specs[0].draws}: {new:,} of {len(rows):,} computed."
        )
    training.loader.close()


def _filled_up(batch: Batch, size: int) -> Batch:
    """The batch with its last row repeated: a feature may depend on the number of rows in the last
    bits."""
    more = size - len(batch)

    def longer(values: Inputs) -> Inputs:
        assert isinstance(values, dict), "inputs of a StoredView"
        return {
            name: torch.cat([own, own[-1:].expand(more, *own.shape[1:])])
            for name, own in values.items()
        }

    return replace(batch, inputs={key: longer(values) for key, values in batch.inputs.items()})
