"""Whether the readers of a recipe offer what its towers read, judged without opening any data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import Address, arrow_of, modality_of, text_names
from vlkd_cli.recipe.messages import Problem
from vlkd_cli.recipe.params import attributes_of, signature_of
from vlkd_cli.recipe.schema import DataSpec, Recipe

_WORDS = {"image": "images", "text": "captions", "mesh": "meshes"}


def check_offers(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the data section: towers and texts without a reader that offers them, and classes
    that cannot be balanced."""
    if recipe.data is None:
        return
    addresses = _addresses(recipe)
    yield from _check_modalities(recipe, recipe.data, addresses)
    yield from _check_texts(recipe, recipe.data, addresses)
    yield from _check_per_class(recipe, recipe.data)


def offers_of(reader: str, keys: Mapping[str, Any]) -> frozenset[str] | None:
    """What a reader with these keys offers: of image, text, mesh, label, target. None: it does not
    say."""
    attributes = attributes_of("reader", reader)
    always, by_key = attributes.get("offers"), attributes.get("offers_by_key")
    if not always and not by_key:
        return None
    try:
        defaults = {key.name: key.default for key in signature_of("reader", reader).keys}
    except RecipeError:
        return None
    given = {
        offer
        for key, offer in (by_key or {}).items()
        if keys.get(key, defaults.get(key)) not in (None, {}, [])
    }
    return frozenset(always or ()) | given


def _readers(data: DataSpec) -> list[tuple[str, Mapping[str, Any], tuple[str | int, ...]]]:
    """Name, keys and place of each reader."""
    found: list[tuple[str, Mapping[str, Any], tuple[str | int, ...]]] = []
    if isinstance(data.reader, str):
        found.append((data.reader, data.keys, ("data", "reader")))
    for number, entry in enumerate(data.readers or []):
        if isinstance(entry.get("reader"), str):
            place = ("data", "readers", number, "reader")
            found.append((entry["reader"], {**data.keys, **entry}, place))
    return found


def _addresses(recipe: Recipe) -> list[Address]:
    """All addresses of the recipe's distillers; wrong ones are reported by their own check."""
    found: dict[Address, None] = {}
    for spec in recipe.distillers:
        try:
            arrow = arrow_of(recipe, spec)
        except (ValueError, RecipeError):
            continue
        found |= dict.fromkeys(each for each in arrow.addresses() if each.tower in recipe.towers)
    return list(found)


def _check_modalities(
    recipe: Recipe, data: DataSpec, addresses: list[Address]
) -> Iterator[Problem]:
    for name in dict.fromkeys(address.tower for address in addresses):
        modality = modality_of(recipe.towers, name)
        for reader, keys, place in _readers(data):
            offers = offers_of(reader, keys)
            if offers is not None and modality is not None and modality not in offers:
                word = _WORDS.get(modality, modality)
                yield Problem(
                    place,
                    f"reader '{reader}' has no {word} as written, and tower '{name}' reads them."
                    f"{_remedy(reader, modality)}",
                )


def _remedy(reader: str, offer: str) -> str:
    by_key = attributes_of("reader", reader).get("offers_by_key", {})
    keys = [key for key, offered in by_key.items() if offered == offer]
    return f" Set data.{keys[0]}, or take another reader." if keys else " Take another reader."


def _check_texts(recipe: Recipe, data: DataSpec, addresses: list[Address]) -> Iterator[Problem]:
    texts = text_names(data)
    for name in texts:
        if name in data.views:
            yield Problem(
                ("data", "views", name), f"'{name}' is a view and a text. Rename one of them."
            )
    for address in addresses:
        modality = modality_of(recipe.towers, address.tower)
        if address.input in texts and address.input not in data.views and modality != "text":
            yield Problem(
                ("towers", address.tower),
                f"'{address.tower}@{address.input}': '{address.input}' is a text of the sample, and"
                f" '{address.tower}' is not a text tower.",
            )


def _check_per_class(recipe: Recipe, data: DataSpec) -> Iterator[Problem]:
    path = ("data", "per_class")
    if data.per_class is None:
        return
    if data.per_class < 2:
        yield Problem(path, "is at least 2: a class with one sample has no pair. Leave it out.")
    elif recipe.train.batch_size % data.per_class:
        yield Problem(
            path,
            f"{data.per_class} does not divide train.batch_size, {recipe.train.batch_size}. Choose"
            " a multiple of it as batch size.",
        )
    if not data.shuffle:
        yield Problem(path, "has an order of its own, so shuffle: false has no effect.")
    for reader, keys, place in _readers(data):
        offers = offers_of(reader, keys)
        if offers is not None and "label" not in offers:
            yield Problem(
                place,
                f"reader '{reader}' has no labels as written, and data.per_class needs them."
                f"{_remedy(reader, 'label')}",
            )
        if keys.get("stream") or keys.get("resampled"):
            yield Problem(
                path, f"needs samples by position, and reader '{reader}' is a stream here."
            )
