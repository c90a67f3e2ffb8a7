"""Checks of `cache:` on towers: features of unaugmented inputs, or of K augmentations of each
image (`cache: {draws: K}`)."""

from __future__ import annotations

from collections.abc import Iterator

from vlkd_cli.recipe.address import LAYER, MAIN_VIEW, POOLED, Address, modality_of, pictures_of
from vlkd_cli.recipe.arrow_checks import arrows_of
from vlkd_cli.recipe.data_checks import readers_of, streams_of
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.modality import FACTS, has_views
from vlkd_cli.recipe.objectives import root_of
from vlkd_cli.recipe.schema import CacheSpec, DataSpec, Recipe, TowerSpec
from vlkd_cli.recipe.token_sizes import size_of_tokens
from vlkd_cli.recipe.tower_checks import only_head_patterns


def check_caches(recipe: Recipe) -> Iterator[Problem]:
    """Problems of every tower's `cache:`."""
    read = [
        address
        for _, arrow, _ in arrows_of(recipe)
        for address in (*arrow.addresses(), *arrow.episode_addresses())
    ]
    for name, tower in recipe.towers.items():
        path = ("towers", name, "cache")
        if not tower.cache or tower.follows is not None:
            continue
        own = [address for address in read if address.tower == name]
        yield from _check_frozen(tower, path)
        yield from _check_streams(recipe, path)
        if tower.draws is not None:
            yield from _check_draws(recipe, name, tower.draws, path, own)
        elif obstacle := _obstacle(recipe, name, tower, own):
            yield Problem(path, obstacle)
    yield from _check_agreement(recipe)


def _check_frozen(tower: TowerSpec, path: Path) -> Iterator[Problem]:
    parts = [part for part in ("adapter", "prompt") if getattr(tower, part) is not None]
    if tower.draws is not None and tower.train != "none":
        yield Problem(path, "draws are for frozen towers. Set train: none, or remove cache.")
    elif tower.train not in ("none", "head") and not only_head_patterns(tower.train):
        yield _learns(path, f"its {parts[0]}" if parts else "its backbone")
    elif parts and tower.train != "none":
        yield _learns(path, f"its {parts[0]}")


def _learns(path: Path, part: str) -> Problem:
    return Problem(
        path,
        f"the tower's features change while {part} is trained. Remove cache, or set train: none (or"
        " head).",
    )


def _check_streams(recipe: Recipe, path: Path) -> Iterator[Problem]:
    streams = [name for name, keys, _ in readers_of(recipe.data) if streams_of(name, keys)]
    if streams:
        yield Problem(
            path,
            f"reader '{streams[0]}' streams here: samples have no index to cache features by."
            " Remove cache, or read without streaming.",
        )


def _obstacle(recipe: Recipe, name: str, tower: TowerSpec, addresses: list[Address]) -> str | None:
    """Why one feature of each sample, computed once, is not all that training reads."""
    if obstacle := _not_a_feature(recipe, tower, addresses):
        return obstacle
    if not has_views(modality_of(recipe.towers, name)) or recipe.data is None:
        return None
    for view in dict.fromkeys([address.input for address in addresses] or [MAIN_VIEW]):
        if _is_random(recipe.data, view):
            key = "data.augment" if view == MAIN_VIEW else f"data.views.{view}"
            return (
                "cached features of images that are augmented at random would be wrong from the"
                f" second epoch on. Set {key}: {{name: none}}, cache: {{draws: K}} for K"
                " augmentations of each image, or cache: false."
            )
        if pictures_of(recipe.data, view) > 1:
            return f"view '{view}' has several pictures, but one feature of each sample is cached."
    return None


def _not_a_feature(recipe: Recipe, tower: TowerSpec, addresses: list[Address]) -> str | None:
    if tower.masks != "none":
        return f"masks: {tower.masks} changes what it encodes. Remove cache, or masks."
    for address in addresses:
        root = root_of(recipe.towers, address)
        if root in ("tokens", "input") or (root or "").startswith("layers."):
            places = root != "input" and not _is_pooled_layer(recipe, address)
            size = _of_tokens(recipe, tower, address.tower) if places else ""
            return (
                f"'{address}' reads {root}, but one feature of each sample is cached{size}. Remove"
                " cache, or read the backbone."
            )
    return None


def _of_tokens(recipe: Recipe, tower: TowerSpec, name: str) -> str:
    """What the cache of tokens would hold."""
    facts = FACTS[modality_of(recipe.towers, name) or "image"]
    if not facts.has_pixels:
        return f": tokens are many rows for each of the {facts.plural}"
    size = size_of_tokens(tower)
    return f": tokens are a row for each patch{f', here {size}' if size else ''}"


def _is_pooled_layer(recipe: Recipe, address: Address) -> bool:
    root = root_of(recipe.towers, address) or ""
    return LAYER.fullmatch(root) is not None and root.endswith(POOLED)


def _is_random(data: DataSpec, view: str) -> bool:
    augment = data.views.get(view) or data.augment
    return augment is None or augment.name != "none"


def _check_draws(
    recipe: Recipe, name: str, spec: CacheSpec, path: Path, addresses: list[Address]
) -> Iterator[Problem]:
    with_views = has_views(modality_of(recipe.towers, name))
    # Of images one row of any layer can be stored; of texts only features are.
    fits = [one for one in addresses if with_views and _is_pooled_layer(recipe, one)]
    rest = [one for one in addresses if one not in fits]
    if obstacle := _not_a_feature(recipe, recipe.towers[name], rest):
        yield Problem(path, obstacle)
    if spec.dtype != "float32" and not spec.store:
        yield Problem((*path, "dtype"), "has no effect with store: false. Remove one of them.")
    if recipe.data is None or not addresses or spec.draws == 1:
        return
    if with_views and not any(_is_random(recipe.data, address.input) for address in addresses):
        yield Problem(
            (*path, "draws"),
            f"{spec.draws} draws have no effect: the images that this tower reads are not augmented"
            " at random. Set draws: 1, or an augmentation under data.augment.",
        )


def _check_agreement(recipe: Recipe) -> Iterator[Problem]:
    """Towers see the same crops of an image, so all of them must have the same number of draws."""
    first: tuple[str, CacheSpec] | None = None
    for name, tower in recipe.towers.items():
        if tower.draws is None:
            continue
        if first is None:
            first = name, tower.draws
            continue
        for key in ("draws", "seed"):
            one, other = getattr(first[1], key), getattr(tower.draws, key)
            if one != other:
                yield Problem(
                    ("towers", name, "cache", key),
                    f"is {other}, and that of tower '{first[0]}' is {one}: one number holds for all"
                    f" towers of a run. Set both to {one}.",
                )
