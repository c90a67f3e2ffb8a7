"""From the words of `vlkd eval` to running workers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vlkd_cli import catalog
from vlkd_cli.checkpoint import Checkpoint, resolve
from vlkd_cli.engine.launching.launch import quieten_libraries, run_workers
from vlkd_cli.engine.launching.run_folder import RunFolder, existing_run, latest_run
from vlkd_cli.engine.launching.start import choose_placement
from vlkd_cli.engine.launching.suite_specs import suite_specs
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.load import load_recipe, parse_recipe
from vlkd_cli.recipe.named_models import named_models
from vlkd_cli.recipe.overrides import parse_path
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.shipped import find_recipe
from vlkd_cli.recipe.snapshot import recipe_to_json
from vlkd_cli.remote_runs import local_run

_NO_TRUST_NEEDED = (
    "--trust has no effect on a recipe of your own: it may name anything; set `trust: true` next"
    " to the `run:` of a tower."
)


def start_evaluation(
    *,
    target: str | None,
    suites: Sequence[str],
    suite_settings: Sequence[str] = (),
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    wise_ft: str | None = None,
    wise_ft_towers: Sequence[str] = (),
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
    if wise_ft is None and wise_ft_towers:
        raise UserError("--wise-ft-tower has no effect without --wise-ft. Add --wise-ft 0,0.5,1.")
    recipe, folder, checkpoint, exported = _found(target, overrides, runs, trust)
    if not folder.recipe.is_file():
        folder.create()
    if data_root is not None and not data_root.is_dir():
        raise UserError(f"--data {data_root}: no such folder.")
    if any(tower.soup is not None for tower in recipe.towers.values()):
        from vlkd_cli.engine.soups import decide_soups

        recipe = decide_soups(recipe)
    specs = suite_specs(recipe, suites, suite_settings, data_root)
    placement = choose_placement(gpus, cpu_workers)
    from vlkd_cli.engine.evaluate import EvalJob, evaluate

    job = EvalJob(
        recipe=recipe_to_json(recipe),
        specs=json.dumps([spec.model_dump(mode="json") for spec in specs]),
        folder=str(folder.path),
        checkpoint=None if checkpoint is None else str(checkpoint),
        exported=exported,
        output=None if output is None else str(output),
        device=placement.device,
        data_root=None if data_root is None else str(data_root),
        wise_ft=_shares(wise_ft),
        wise_ft_towers=tuple(wise_ft_towers),
    )
    return run_workers(evaluate, job, placement, folder.logs)


def _found(
    target: str | None, overrides: Sequence[str], runs: Path, trust: bool
) -> tuple[Recipe, RunFolder, Path | None, dict[str, str]]:
    """`find_target`, and what only a table's targets may be as well: models of a builder, and
    exported folders with their towers."""
    if target is None:
        return *find_target(None, overrides, runs, trust), {}
    from vlkd_cli.engine.launching.targets import target_of

    found = target_of(target, overrides, runs, trust)
    exported = {name: str(path) for name, path in found.exported.items()}
    return found.recipe, found.folder, found.checkpoint, exported


def find_target(
    target: str | None,
    overrides: Sequence[str],
    runs: Path,
    trust: bool = False,
    *,
    foreign: bool = False,
) -> tuple[Recipe, RunFolder, Path | None]:
    """The recipe, the folder for results (not made here), and the checkpoint, if what is meant was
    trained.

    Without a target: the newest run here; or, where `--set towers...` describes towers, just those.

    Args:
        foreign: whether a file holds these words, as an index does; a recipe that it names is not
            the user's own, unless `trust`.
    """
    target = None if target is None else local_run(target)
    set_paths = [parse_path(override.partition("=")[0].strip()) for override in overrides]
    if target is None and any(path[:1] == ("towers",) for path in set_paths):
        # The towers that --set describes, empty: it fills keys, and refuses towers that are not
        # there.
        named: dict[object, dict[str, object]] = {
            path[1]: {} for path in set_paths if path[:1] == ("towers",) and len(path) > 2
        }
        if trust and not foreign:
            raise UserError(_NO_TRUST_NEEDED)
        recipe = parse_recipe(json.dumps({"towers": named}), "--set", overrides)
        return recipe, RunFolder(runs / "eval"), None
    if target is None or _is_trained(target, runs):
        return find_trained(target, overrides, runs, trust)
    if trust and not foreign:
        raise UserError(_NO_TRUST_NEEDED)
    path = Path(target)
    try:
        recipe = load_recipe(target, overrides, foreign=foreign and not trust)
    except RecipeError:
        if path.suffix in (".yaml", ".yml") or path.exists() or _is_shipped(target):
            raise
        raise _unknown(
            target,
            runs,
            "run folder, checkpoint or recipe",
            " `vlkd recipes list` shows the shipped recipes.",
        ) from None
    return recipe, RunFolder(runs / f"eval-{path.stem}"), None


def find_trained(
    target: str | None, overrides: Sequence[str], runs: Path, trust: bool = False
) -> tuple[Recipe, RunFolder, Path]:
    """The recipe, the folder and the checkpoint of a run, by folder, name or checkpoint; by default
    of the newest run.

    A checkpoint outside its run gets a folder next to it, which is not made here. What comes with
    the run may name components of the catalogue only, unless it is to be trusted.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    if target is None:
        return _of_run(latest_run(runs), overrides, trust)
    target = local_run(target)
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
    builder, colon, model = target.partition(":")
    if "recipe" in what and colon and (near := catalog.closest(builder, catalog.names("builder"))):
        return UserError(f"'{target}': no builder '{builder}'. Did you mean '{near}:{model}'?")
    names = [*(folder.parent.name for folder in runs.glob("*/recipe.yaml")), *named_models()]
    return UserError(
        f"'{target}' is not a {what}.{catalog.did_you_mean(Path(target).name, names)}{hint}"
    )


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
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= share <= 1 for share in found):
        raise UserError(
            f"--wise-ft {text}: numbers from 0 to 1 separated by commas, e.g. 0,0.25,0.5,0.75,1."
        )
    if len(set(found)) < len(found):
        raise UserError(f"--wise-ft {text}: names a number twice. Leave one of them out.")
    return found
