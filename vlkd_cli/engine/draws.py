"""Towers with `cache: {draws: K}` in a run: their tables, and what the loader shows them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from vlkd_cli.data.batch import View
from vlkd_cli.data.loading.draws import Draws
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.stored_view import StoredView
from vlkd_cli.data.views import ImageView
from vlkd_cli.engine.views import addresses, build_views
from vlkd_cli.features.draw_tables import DrawTables
from vlkd_cli.recipe.address import MAIN_VIEW, Address
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.towers.tower import Tower


def draws_of(recipe: Recipe) -> Draws | None:
    """The augmentations of a run; `recipe.cache_checks` sees to it that towers agree."""
    specs = [tower.draws for tower in recipe.towers.values() if tower.draws is not None]
    return Draws(specs[0].draws, specs[0].seed) if specs else None


def stored_outputs(recipe: Recipe, tower: Tower) -> list[str]:
    """What a run reads of a tower's backbone, in one order: its feature and pooled layers."""
    read = {address.output for address in addresses(recipe, tower.name)}
    return sorted(name for name in tower.graph.closure(read) if name not in tower.graph.links)


def open_tables(
    recipe: Recipe, reader: Reader, draws: Draws, tower: Tower, folder: Path
) -> DrawTables | None:
    """The tables of a tower of images; None where it stores nothing, or nothing is read of it.

    Raises:
        DataError: the disk has no room for them.
    """
    spec = recipe.towers[tower.name].draws
    names = dict.fromkeys(address.input for address in addresses(recipe, tower.name))
    if spec is None or not spec.store or not names:
        return None
    keys = {Address(tower.name, input=view).input_key: view for view in names}
    built = build_views(recipe, dict.fromkeys(keys, tower.name), {tower.name: tower})
    views = {view: built[key] for key, view in keys.items()}
    images = {name: view for name, view in views.items() if isinstance(view, ImageView)}
    return DrawTables(
        tower,
        reader,
        folder,
        images,
        draws,
        precision=recipe.train.precision,
        outputs=stored_outputs(recipe, tower),
        dtype=spec.dtype,
    )


def show_draws(
    views: dict[str, View],
    keys: Mapping[str, str],
    storing: Collection[str],
    tables: Mapping[str, DrawTables],
) -> None:
    """Let views show the augmentations of their rows where a stored tower reads them, and stored
    towers read their tables.

    Args:
        views: by key of `Batch.inputs`; changed in place.
        keys: the tower of each.
        storing: names of the towers with draws.
        tables: of those that store.
    """
    shown = {_view_of(key) for key, name in keys.items() if name in storing}
    for key, name in keys.items():
        view = views.get(key)
        if not isinstance(view, ImageView):
            continue
        if name in storing:
            own = tables.get(name)
            views[key] = StoredView(
                view.expected,
                view.augment,
                copies=view.copies,
                tables=own.worker_tables(_view_of(key)) if own else (),
                first=own.first[_view_of(key)] if own else 0,
            )
        elif _view_of(key) in shown:
            view.by_draw = True


def _view_of(key: str) -> str:
    return key.partition("@")[2] or MAIN_VIEW
