"""From the `data:` section of a recipe, or of a suite, to the reader."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vlkd_cli import catalog
from vlkd_cli.data.loading.broken import refuse_lost
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.column_names import names_problems
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import DataSpec

_LOADING = (
    "augment",
    "views",
    "episode_samples",
    "shuffle",
    "per_class",
    "distinct",
    "workers",
    "prefetch",
    "max_broken_share",
    "exclude",
)


def open_reader(spec: DataSpec | Mapping[str, Any], **overrides: Any) -> Reader | StreamReader:
    """The reader that a `data:` section names, or the mixture of its `readers`.

    Args:
        spec: a recipe's section, or the mapping of a suite's `data:` key. Keys of the loader
            (augment, workers, ...) are passed over.
        overrides: keys that replace those of the section, e.g. `split="val"`; None leaves the
            section's key.

    Raises:
        RecipeError: no such reader, or a key that it does not take.
        DataError: the data cannot be opened, or more of it is lost than `max_broken_share` allows;
            without that key, as in an evaluation, nothing may be.
    """
    if isinstance(spec, DataSpec):
        allowed: float | None = spec.max_broken_share
        keys = dict(spec.keys, reader=spec.reader, readers=spec.readers)
    else:
        allowed, keys = spec.get("max_broken_share"), dict(spec)
    reader = _opened(keys, overrides)
    if isinstance(reader, Reader):
        refuse_lost(reader.lost, len(reader), allowed)
    return reader


def _opened(keys: dict[str, Any], overrides: Mapping[str, Any]) -> Reader | StreamReader:
    keys = {key: value for key, value in keys.items() if key not in _LOADING}
    several = keys.pop("readers", None)
    name = keys.pop("reader", None)
    if (name is None) == (several is None):
        raise RecipeError(
            "data: set either 'reader' or 'readers'. Readers:"
            f" {', '.join(catalog.names('reader'))}."
        )
    keys |= {key: value for key, value in overrides.items() if value is not None}
    if several is not None:
        from vlkd_cli.data.readers.mix import mixed

        weights = [part.get("weight") for part in several]
        parts = [{key: value for key, value in part.items() if key != "weight"} for part in several]
        return mixed([_opened(part, keys) for part in parts], weights)
    return _open(name, keys)


def _open(name: str, keys: Mapping[str, Any]) -> Reader | StreamReader:
    for key, problem in names_problems(keys):
        raise DataError(f"data.{key} {problem}")
    plain = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in keys.items()}
    reader: Reader | StreamReader = make("reader", name, plain)
    return reader.opened() if isinstance(reader, Reader) else reader
