"""The data of suites: the default where an entry names none, and whether it offers what a suite
needs. No data is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.data_checks import offers_of
from vlkd_cli.recipe.groups import group_key
from vlkd_cli.recipe.messages import Problem, is_data_source
from vlkd_cli.recipe.params import attributes_of, signature_of
from vlkd_cli.recipe.schema import EvalSpec, Recipe

_OWN_TO_TRAINING = frozenset({"split", "num_samples", "seed", "weight"})
"""Keys of rendered shapes that select the training pictures."""


def reads_data_sets(suite: str) -> bool:
    """Whether a suite's `data:` names a data set or a reader; text suites take folders instead."""
    try:
        keys = signature_of("suite", suite).keys
    except RecipeError:
        return False
    return any(key.name == "data" and is_data_source(key.annotation) for key in keys)


def default_data(recipe: Recipe, suite: str) -> dict[str, object]:
    """Values of the data keys of a suite without any: those of the first entry of `evals:` whose
    data offers what the suite needs; else rendered shapes, for towers that are trained on them.
    Empty where there is neither."""
    needs = attributes_of("suite", suite).get("needs", frozenset())
    for spec in recipe.evals:
        data = spec.keys.get("data")
        if data is None or not reads_data_sets(spec.suite):
            continue
        if isinstance(data, str):
            # A name means the same to suites that need the same.
            fits = attributes_of("suite", spec.suite).get("needs", frozenset()) == needs
        else:
            fits = _offers(data, needs)
        if fits:
            taken = signature_of("suite", suite).key_names()
            own = {key: spec.keys.get(key) for key in ("data", "train_data", "val_data")}
            found = {key: value for key, value in own.items() if value is not None and key in taken}
            if "min_group" not in taken and (column := group_key(data)):
                found["data"] = {key: value for key, value in data.items() if key != column}
            return found
    return {"data": shapes} if (shapes := _shapes_of(recipe)) else {}


def with_data(recipe: Recipe, spec: EvalSpec) -> EvalSpec:
    """The entry, with the data that it is evaluated on."""
    if spec.keys.get("data") is not None or not reads_data_sets(spec.suite):
        return spec
    return spec.model_copy(update=default_data(recipe, spec.suite))


def check_evaluation_data(recipe: Recipe) -> Iterator[Problem]:
    """Entries of `evals:` that have no data to be evaluated on while the recipe is trained; one
    that is only evaluated may get it from the command."""
    if recipe.data is None:
        return
    for number, spec in enumerate(recipe.evals):
        if spec.keys.get("data") is None and reads_data_sets(spec.suite):
            if not default_data(recipe, spec.suite):
                yield Problem(
                    ("evals", number, "suite"),
                    f"'{spec.suite}' has no data to measure. Give it `data: {{reader: ..., split:"
                    " val}`.",
                )


_WANTED_BY_KEY = {
    "min_group": ("group", "gives no groups. Name the column of the group, `group: COLUMN`"),
    "languages": ("languages", "has captions in one language only. Use reader multilingual"),
}
"""Keys of suites that need something of their data, and what to do where it is not there."""


def check_wanted_by_suites(recipe: Recipe) -> Iterator[Problem]:
    """Evaluations whose reader cannot offer what the suite or a key of it is about."""
    for number, spec in enumerate(recipe.evals):
        data = spec.keys.get("data")
        if not isinstance(data, Mapping) or not isinstance(data.get("reader"), str):
            continue
        reader, offers = data["reader"], offers_of(data["reader"], data)
        if offers is None or ":" in reader:  # a third party's may offer what it does not declare
            continue
        for key, (offer, remedy) in _WANTED_BY_KEY.items():
            if spec.keys.get(key) is not None and offer not in offers:
                yield Problem(
                    ("evals", number, key),
                    f"has no effect: reader '{reader}' {remedy}, or remove the key.",
                )
        needs = attributes_of("suite", spec.suite).get("needs", frozenset())
        if "choices" in needs and "choices" not in offers:
            yield Problem(
                ("evals", number, "data"),
                f"'{spec.suite}' needs right and wrong captions, and reader '{reader}' has no wrong"
                " ones. Use reader choices.",
            )


def _offers(data: Mapping[str, object], needs: frozenset[str]) -> bool:
    reader = data.get("reader")
    offers = offers_of(reader, data) if isinstance(reader, str) else None
    return offers is None or needs <= offers


def _shapes_of(recipe: Recipe) -> dict[str, object]:
    """Validation pictures like those that a recipe trains on, if it trains on rendered shapes."""
    if recipe.data is None:
        return {}
    readers = recipe.data.readers or [{"reader": recipe.data.reader, **recipe.data.keys}]
    if any(entry.get("reader") != "shapes" for entry in readers):
        return {}
    own = {key: value for key, value in readers[0].items() if key not in _OWN_TO_TRAINING}
    return {**own, "split": "val"}
