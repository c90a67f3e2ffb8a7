"""Columns of groups in the data of a recipe, and which of them nothing reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vlkd_cli import catalog
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.params import attributes_of, signature_of
from vlkd_cli.recipe.schema import EvalSpec, Recipe


def check_groups(recipe: Recipe) -> Iterator[Problem]:
    """Columns of groups that nothing reads: figures by group are those of the `data` of suites that
    take `min_group`."""
    for path, own in _data_of_training(recipe):
        if column := group_key(own):
            yield Problem(
                (*path, column),
                "has no effect: training does not read groups. Remove it, or name it in"
                " `evals[i].data`, whose figures by group it gives.",
            )
    for number, spec in enumerate(recipe.evals):
        for key, column, text in idle_groups(spec):
            yield Problem(("evals", number, key, column), text)


def idle_groups(spec: EvalSpec) -> Iterator[tuple[str, str, str]]:
    """Key of the data, its key that names a column of groups, and why that has no effect."""
    if ":" in spec.suite:  # a third party's may read them
        return
    for key, data in spec.keys.items():
        column = group_key(data)
        if column is None:
            continue
        if spec.suite not in suites_with_groups():
            reason = f"'{spec.suite}' gives no figures by group; {_listed()} do"
        elif key != "data":
            reason = "figures by group are those of `data`"
        else:
            continue
        yield key, column, f"has no effect: {reason}. Remove it."


def suites_with_groups() -> list[str]:
    """Suites that give figures by group."""
    names = catalog.names("suite")
    return [name for name in names if "min_group" in signature_of("suite", name).key_names()]


def _listed() -> str:
    *others, last = sorted(suites_with_groups())
    return f"{', '.join(others)} and {last}"


def _data_of_training(recipe: Recipe) -> Iterator[tuple[Path, Mapping[str, object]]]:
    if recipe.data is not None:
        yield ("data",), {"reader": recipe.data.reader, **recipe.data.keys}
        for number, entry in enumerate(recipe.data.readers or []):
            yield ("data", "readers", number), entry


def group_key(data: object) -> str | None:
    """The key of a reader that names a column of groups, where it does."""
    if not isinstance(data, Mapping) or not isinstance(data.get("reader"), str):
        return None
    by_key = attributes_of("reader", data["reader"]).get("offers_by_key") or {}
    # A boolean sets whether rows of one image are merged.
    keys = [key for key, offer in by_key.items() if offer == "group"]
    return next((key for key in keys if isinstance(data.get(key), str)), None)
