"""From the words of `vlkd eval` to running workers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkd_cli import catalog
from vlkd_cli.checkpoint import Checkpoint, resolve
from vlkd_cli.engine.launching.launch import quieten_libraries, run_workers
from vlkd_cli.engine.launching.run_folder import RunFolder, existing_run, latest_run
from vlkd_cli.engine.launching.start import choose_placement
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.load import load_recipe, parse_recipe
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.recipe.shipped import find_recipe
from vlkd_cli.recipe.snapshot import recipe_to_json

_NO_TRUST_NEEDED = (
    "--trust has no effect on a recipe of your own: it may name anything, and says `trust: true`"
    " beside the `run:` of a tower."
)
SCHEDULE_KEYS = ("every_epochs", "every_steps", "first", "last")


def start_evaluation(
    *,
    target: str | None,
    suites: Sequence[str],
    suite_settings: Sequence[str] = (),
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    wise_ft: str | None = None,
    gpus: int | None = None,
    cpu_workers: int | None = None,
    output: Path | None = None,
    runs: Path = Path("runs"),
    trust: bool = False,
) -> int:
    """Find what is meant, check it, start the workers; see `commands/evaluate.py` for the
    arguments.

    Returns:
        0, or the number of the signal that stopped it.
    """
    quieten_libraries()
    recipe, folder, checkpoint = find_target(target, overrides, runs, trust)
    if data_root is not None and not data_root.is_dir():
        raise UserError(f"--data {data_root}: no such folder.")
    specs = suite_specs(recipe, suites, suite_settings)
    placement = choose_placement(gpus, cpu_workers)
    from vlkd_cli.engine.evaluate import EvalJob, evaluate

    job = EvalJob(
        recipe=recipe_to_json(recipe),
        specs=json.dumps([spec.model_dump(mode="json") for spec in specs]),
        folder=str(folder.path),
        checkpoint=None if checkpoint is None else str(checkpoint),
        output=None if output is None else str(output),
        device=placement.device,
        data_root=None if data_root is None else str(data_root),
        wise_ft=_shares(wise_ft),
    )
    return run_workers(evaluate, job, placement, folder.logs)


def find_target(
    target: str | None, overrides: Sequence[str], runs: Path, trust: bool = False
) -> tuple[Recipe, RunFolder, Path | None]:
    """The recipe, the folder for results, and the checkpoint, if what is meant was trained.

    Without a target: the newest run here; or, where `--set towers...` describes towers, just those.
    """
    if target is None and any(override.startswith("towers.") for override in overrides):
        # The towers that --set describes, empty: it fills keys, and refuses towers that are not
        # there.
        named = [
            override.partition("=")[0].split(".")
            for override in overrides
            if override.startswith("towers.")
        ]
        if trust:
            raise UserError(_NO_TRUST_NEEDED)
        recipe = parse_recipe(
            json.dumps({"towers": {parts[1]: {} for parts in named if len(parts) > 2}}),
            "--set",
            overrides,
        )
        return recipe, RunFolder(runs / "eval").create(), None
    if target is None or _is_trained(target, runs):
        recipe, folder, checkpoint = find_trained(target, overrides, runs, trust)
        return recipe, folder if folder.recipe.is_file() else folder.create(), checkpoint
    if trust:
        raise UserError(_NO_TRUST_NEEDED)
    path = Path(target)
    try:
        recipe = load_recipe(target, overrides)
    except RecipeError:
        if path.suffix in (".yaml", ".yml") or path.exists() or _is_shipped(target):
            raise
        raise _unknown(
            target,
            runs,
            "run folder, checkpoint or recipe",
            " `vlkd recipes list` shows the shipped recipes.",
        ) from None
    return recipe, RunFolder(runs / f"eval-{path.stem}").create(), None


def find_trained(
    target: str | None, overrides: Sequence[str], runs: Path, trust: bool = False
) -> tuple[Recipe, RunFolder, Path]:
    """The recipe, the folder and the checkpoint of a run, by folder, name or checkpoint; by default
    of the newest run.

    A checkpoint outside its run gets a folder beside it, which is not made here. What comes with
    the run may name components of the catalogue only, unless it is to be trusted.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    if target is None:
        return _of_run(latest_run(runs), overrides, trust)
    path = Path(target)
    if not _is_trained(target, runs):
        untrained = (
            " The towers of a recipe are untrained; `vlkd train` starts a run."
            if path.suffix in (".yaml", ".yml")
            else ""
        )
        raise _unknown(target, runs, "run folder or checkpoint", untrained)
    if path.is_dir() or not _is_checkpoint(path):
        return _of_run(existing_run(path, runs), overrides, trust)
    run = RunFolder(path.resolve().parent.parent)
    if run.recipe.is_file():
        return load_recipe(run.recipe, overrides, foreign=not trust), run, path
    return (
        Checkpoint.load(path).read_recipe(overrides, trust=trust),
        RunFolder(path.parent / f"{path.stem}-eval"),
        path,
    )


def _is_trained(target: str, runs: Path) -> bool:
    """Whether a target means something trained: a checkpoint, or a run by its folder or name."""
    path = Path(target)
    return _is_checkpoint(path) or path.is_dir() or (runs / path / "recipe.yaml").is_file()


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".pt" or (path.is_file() and path.suffix not in (".yaml", ".yml"))


def _unknown(target: str, runs: Path, what: str, hint: str = "") -> UserError:
    names = [folder.parent.name for folder in runs.glob("*/recipe.yaml")]
    return UserError(
        f"'{target}' is no {what}.{catalog.did_you_mean(Path(target).name, names)}{hint}"
    )


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
            spec.model_dump(exclude=set(SCHEDULE_KEYS))
            for spec in recipe.evals
            if spec.suite == name
        ]
        entries += listed or [{"suite": name}]
    # Stand-ins of both modalities: whether the real towers are what a suite needs is told once they
    # are built.
    towers = {
        "image": {"builder": "torchvision", "model": "resnet18"},
        "text": {"builder": "openclip", "model": "RN50"},
    }
    plain: dict[str, Any] = {"towers": towers, "evals": entries}
    applied = []
    for setting in settings:
        key = setting.partition("=")[0].split(".")[0].split("[")[0]
        takers = [number for number, entry in enumerate(entries) if _takes(entry["suite"], key)]
        if not takers:
            accepted = sorted(
                {k.name for entry in entries for k in signature_of("suite", entry["suite"]).keys}
            )
            chosen = ", ".join(entry["suite"] for entry in entries)
            raise RecipeError(
                f"--with {setting}: {chosen} takes no '{key}'.{catalog.did_you_mean(key, accepted)}"
                f" Accepted: {', '.join(accepted)}."
            )
        applied += [f"evals.{number}.{setting}" for number in takers]
    # The recipe's own reader of YAML and its checks, so that messages and types are the same as in
    # a recipe.
    try:
        return list(parse_recipe(json.dumps(plain), "--suite", applied).evals)
    except RecipeError as error:
        # In the words that the user typed.
        typed = re.sub(r"--set evals\.\d+\.", "--with ", str(error)).replace(
            "--suite:1: ", "--suite: "
        )
        raise RecipeError(re.sub(r": evals\[\d+\]\.(suite: )?", ": ", typed)) from None


def _takes(suite: str, key: str) -> bool:
    return key in {declared.name for declared in signature_of("suite", suite).keys}


def _of_run(
    run: RunFolder, overrides: Sequence[str], trust: bool
) -> tuple[Recipe, RunFolder, Path]:
    return load_recipe(run.recipe, overrides, foreign=not trust), run, resolve(run.path)


def _is_shipped(name: str) -> bool:
    try:
        find_recipe(name)
    except RecipeError:
        return False
    return True


def _shares(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--wise-ft {text}: numbers separated by commas, e.g. 0,0.25,0.5,0.75,1."
        ) from None
