"""From `--suite NAME` and `--with KEY=VALUE` to the entries that are evaluated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkd_cli import catalog, console
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.component import check_third_party
from vlkd_cli.recipe.evaluation_data import default_data, reads_data_sets
from vlkd_cli.recipe.former_names import former_keys, replace_in_suite
from vlkd_cli.recipe.groups import idle_groups
from vlkd_cli.recipe.messages import is_data_source, report, shown
from vlkd_cli.recipe.overrides import Setting, apply_overrides
from vlkd_cli.recipe.params import Key, signature_of
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.recipe.shape import check_eval
from vlkd_cli.recipe.variables import without_marks
from vlkd_cli.recipe.yaml_file import Document

ENTRY_KEYS = ("name", "tower", "width")
"""Keys of an entry that are not the suite's and that `--with` sets too."""
SCHEDULE_KEYS = ("every_epochs", "every_steps", "first", "last", "reference")


def suite_specs(
    recipe: Recipe,
    suites: Sequence[str],
    settings: Sequence[str],
    data_root: Path | None = None,
    *,
    has_data: bool = False,
) -> list[EvalSpec]:
    """The suites asked for, each with the keys that the recipe gives it and with `--with` settings
    on top, checked.

    A suite that the recipe lists several times is run as often. A setting goes to the suites that
    take its key; one that none takes is an error. A suite without data takes what lies below
    `data_root`, else the data of another entry of the recipe (`recipe.evaluation_data`).

    Args:
        has_data: data is chosen elsewhere, suite by suite.

    Raises:
        RecipeError: unknown suites or keys, wrong values; all at once. Also a suite without data,
            and a data root that no suite reads.
    """
    if not suites and not recipe.evals:
        raise UserError(
            f"choose what to evaluate: --suite NAME. Suites: {', '.join(catalog.names('suite'))}."
        )
    entries: list[dict[str, Any]] = []
    for name in suites or list(dict.fromkeys(spec.suite for spec in recipe.evals)):
        listed = [
            spec.model_dump(exclude=set(SCHEDULE_KEYS), exclude_none=True)
            for spec in recipe.evals
            if spec.suite == name
        ]
        entries += listed or [{"suite": name}]
    if data_root is None and not has_data:
        for entry in entries:
            if entry.get("data") is None and reads_data_sets(entry["suite"]):
                entry |= copy.deepcopy(default_data(recipe, entry["suite"]))
    keys = [_keys(entry["suite"]) for entry in entries]
    for setting in settings:
        _refuse_untaken(setting, entries, keys)
        if has_data and _key_of(setting) == "data":
            raise RecipeError(
                f"--with {setting}: has no effect on a table, whose data --datasets names. Write"
                " keys of its data into a list: FILE.yaml with `NAME: [{dataset: ..., split: ...}]`"
                " and --datasets FILE.yaml:NAME."
            )
    found, lines = [], []
    for entry, declared in zip(entries, keys, strict=True):
        values, problems = _with_settings(entry, declared, settings)
        lines += problems
        if not problems:
            found.append(EvalSpec.model_validate(values))
            lines += [
                f"--suite {found[-1].suite}: {key}.{column}: {text}"
                for key, column, text in idle_groups(found[-1])
            ]
    if lines:
        raise RecipeError("\n".join(dict.fromkeys(lines)))
    if not has_data:
        _check_data(found, data_root)
    return found


def _check_data(specs: Sequence[EvalSpec], data_root: Path | None) -> None:
    """Refuse suites that would have nothing to measure, and a data root without effect."""
    if data_root is None:
        for spec in specs:
            if reads_data_sets(spec.suite) and spec.keys.get("data") is None:
                raise RecipeError(
                    f"suite '{spec.suite}': no data is set. The recipe evaluates on none that fits."
                    " Give --data ROOT with --with data=NAME, or --with 'data={reader: ...}'."
                )
        return
    if not any(_reads_root(spec) for spec in specs):
        spec = specs[0]
        key = next((key for key in _DATA_KEYS if spec.keys.get(key) is not None), None)
        why = (
            f"the recipe has `{key}: {shown(spec.keys[key])}`. Add --with data=NAME to measure a"
            f" data set below {data_root}, or leave --data out."
            if key is not None
            else "it reads no data. Leave --data out."
        )
        raise RecipeError(f"--data {data_root} has no effect on suite '{spec.suite}': {why}")


_DATA_KEYS = ("data", "train_data", "val_data", "root")


def _reads_root(spec: EvalSpec) -> bool:
    """Whether some of a suite's data is looked up below the data root."""
    own = {key: spec.keys.get(key) for key in _DATA_KEYS if key in _keys(spec.suite)}
    if not own:
        return ":" in spec.suite  # a third party's may read it in a way of its own
    for key, value in own.items():
        if value is None and key in ("data", "root"):
            return True
        if isinstance(value, dict) and not {"reader", "readers"} & value.keys():
            return True
        if isinstance(value, str) and (
            reads_data_sets(spec.suite) or not Path(value).expanduser().exists()
        ):
            return True
    return False


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
    if key in ENTRY_KEYS or any(key in declared for declared in keys):
        return
    if any(key in former_keys(entry["suite"]) for entry in entries):
        return
    accepted = sorted({*ENTRY_KEYS, *(name for declared in keys for name in declared)})
    chosen = ", ".join(entry["suite"] for entry in entries)
    if isinstance(setting, Setting):
        takers = [name for name in catalog.names("suite") if key in _keys(name)]
        raise RecipeError(
            f"{setting.written}: has no effect on {chosen}. Leave it out; it is for"
            f" {', '.join(takers)}."
        )
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
        former = former_keys(entry["suite"])
        if key not in declared and key not in ENTRY_KEYS and key not in former:
            continue
        if key in former:
            entry.pop(former[key], None)  # what was typed replaces what the recipe has
        within = setting.partition("=")[0].strip() != key
        if (
            within
            and key in declared
            and is_data_source(declared[key].annotation)
            and isinstance(entry.get(key), str)
        ):
            # `data=NAME` and then `data.split=test`.
            entry[key] = {"dataset": entry[key]}
        problems += apply_overrides(document, [setting], option="--with")
    for notice in replace_in_suite(entry):
        console.warn(f"--with: {entry['suite']}: {notice}")
    problems += check_eval(entry, ())
    text = report(document.origins, problems, f"--suite {entry['suite']}") if problems else ""
    return without_marks(entry), text.splitlines()
