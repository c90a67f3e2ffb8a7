"""A recipe's composition and its loader, for Python programs with a loop of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vlkd_cli.composition.composition import Composition
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.distributed.runtime import pick_device
from vlkd_cli.engine.build import build_training
from vlkd_cli.engine.soups import decide_soups
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.load import load_recipe, origins_of
from vlkd_cli.recipe.messages import located


class Composed(NamedTuple):
    """What a recipe trains, and what it trains on.

    Args:
        composition: `composition(batch, progress)` is a StepOutput (loss, terms).
        loader: `loader.batches(epoch)` yields batches; `batch.to(device)` moves one.
    """

    composition: Composition
    loader: Loader


def compose(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Composed:
    """See `api.compose`."""
    checked, origins = load_recipe(recipe, overrides, to_train=1), origins_of(recipe, overrides)
    if any(tower.soup is not None for tower in checked.towers.values()):
        checked = decide_soups(checked)
    try:
        # What a run would store next to its checkpoints is in memory as well.
        with tempfile.TemporaryDirectory(prefix="vlkd-compose-") as folder:
            training = build_training(
                checked,
                pick_device(device),
                run_folder=Path(folder),
                quiet=True,
                origins=origins,
            )
    except RecipeError as error:
        raise RecipeError(located(str(error), origins)) from error
    return Composed(training.composition, training.loader)
