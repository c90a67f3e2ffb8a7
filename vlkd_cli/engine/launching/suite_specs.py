"""From `--suite NAME` and `--with KEY=VALUE` to the entries that are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlkd_cli import catalog
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.component import check_third_party
from vlkd_cli.recipe.messages import is_data_source, report
from vlkd_cli.recipe.overrides import apply_overrides
from vlkd_cli.recipe.params import Key, signature_of
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.recipe.shape import check_eval
from vlkd_cli.recipe.variables import without_marks
from vlkd_cli.recipe.yaml_file import Document

SCHEDULE_KEYS = ("every_epochs", "every_steps", "first", "last")


def suite_specs(recipe: Recipe, suites: Sequence[str], settings: Sequence[str]) -> list[EvalSpec]:
    """The suites asked for, each with the keys that the recipe gives it and with `--with` settings
    on top, checked.

    A suite that the recipe lists several times is run as often. A setting goes to the suites that
    take its key; one that none takes is an error.

    Raises:
        RecipeError: unknown suites or keys, wrong values; all at once.
    """
    if not suites and not recipe.evals:
        raise UserError(
            f"say what to evaluate: --suite NAME. Suites: {', '.join(catalog.names('suite'))}."
        )
    entries: list[dict[str, Any]] = []
    for name in suites or list(dict.fromkeys(spec.suite for spec in recipe.evals)):
        listed = [
            spec.model_dump(exclude=set(SCHEDULE_KEYS), exclude_none=True)
            for spec in recipe.evals
            if spec.suite == name
        ]
        entries += listed or [{"suite": name}]
    keys = [_keys(entry["suite"]) for entry in entries]
    for setting in settings:
        _refuse_untaken(setting, entries, keys)
    found, lines = [], []
    for entry, declared in zip(entries, keys, strict=True):
        values, problems = _with_settings(entry, declared, settings)
        lines += problems
        if not problems:
            found.append(EvalSpec.model_validate(values))
    if lines:
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    return found


def _keys(suite: str) -> dict[str, Key]:
    """The keys that a suite takes.

    Raises:
        RecipeError: no such suite.
    """
    try:
        check_third_party("suite", suite)
        return {key.name: key for key in signature_of("suite", suite).keys}
    except RecipeError as error:
        raise RecipeError(f"--suite: {error}") from error


def _key_of(setting: str) -> str:
    return setting.partition("=")[0].split(".")[0].split("[")[0]


def _refuse_untaken(
    setting: str, entries: Sequence[dict[str, Any]], keys: Sequence[dict[str, Key]]
) -> None:
    key = _key_of(setting)
    if any(key in declared for declared in keys):
        return
    accepted = sorted({name for declared in keys for name in declared})
    chosen = ", ".join(entry["suite"] for entry in entries)
    raise RecipeError(
        f"--with {setting}: {chosen} takes no '{key}'.{catalog.did_you_mean(key, accepted)}"
        f" Accepted: {', '.join(accepted)}."
    )


def _with_settings(
    entry: dict[str, Any], declared: dict[str, Key], settings: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The entry with the settings of its suite, and what is wrong with it, in the words that were
    typed."""
    document = Document(entry, {}, [])
    problems = []
    for setting in settings:
        key = _key_of(setting)
        if key not in declared:
            continue
        within = setting.partition("=")[0].strip() != key
        if within and is_data_source(declared[key].annotation) and isinstance(entry.get(key), str):
            # `data=NAME` and then `data.split=test`.
            entry[key] = {"dataset": entry[key]}
        problems += apply_overrides(document, [setting], option="--with")
    problems += check_eval(entry, ())
    text = report(document.origins, problems, f"--suite {entry['suite']}") if problems else ""
    return without_marks(entry), text.splitlines()
