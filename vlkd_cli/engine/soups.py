"""Which of several runs a tower averages: `soup: {greedy: EVAL}` of a recipe, decided by that
evaluation before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from vlkd_cli import console
from vlkd_cli.distributed.runtime import pick_device
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.recipe.evaluation_data import with_data
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.towers.soup import Greedy, greedy


def decide_soups(recipe: Recipe) -> Recipe:
    """The recipe with the runs that greedy averaging takes in the place of each `soup: {greedy:
    EVAL}`. Towers with the same runs and the same evaluation are averaged together.

    Raises:
        UserError: a run or the evaluation's data cannot be read.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, tower in recipe.towers.items():
        if isinstance(tower.soup, dict) and isinstance(tower.run, list):
            groups.setdefault((tower.soup["greedy"], *tower.run), []).append(name)
    for (title, *runs), towers in groups.items():
        spec = next(entry for entry in recipe.evals if entry.title == title)
        _warn_of_test(spec)
        score = partial(_score, recipe, spec, towers, runs)
        found, uniform = greedy(len(runs), score), score(range(len(runs)))
        _say(towers, title, runs, found, uniform)
        recipe = _with_runs(recipe, towers, [runs[number] for number in found.taken])
    return recipe


def _score(
    recipe: Recipe,
    spec: EvalSpec,
    towers: Sequence[str],
    runs: Sequence[str],
    numbers: Sequence[int],
) -> float:
    """The primary metric of an evaluation, the mean over its data sets, with the average of some
    runs."""
    chosen = _with_runs(recipe, towers, [runs[number] for number in numbers])
    device = pick_device("auto")
    built = load_towers(chosen, None, None)
    for tower in built.values():
        tower.to(device)
    subject = subject_of(chosen, built, device)
    results = run_suites(subject, [with_data(recipe, spec)])
    return sum(result.metrics[result.primary_metric] for result in results) / len(results)


def _with_runs(recipe: Recipe, towers: Sequence[str], runs: list[str]) -> Recipe:
    keys = {"run": runs if len(runs) > 1 else runs[0], "soup": "uniform" if len(runs) > 1 else None}
    changed = {name: recipe.towers[name].model_copy(update=keys) for name in towers}
    chosen = recipe.model_copy(update={"towers": {**recipe.towers, **changed}})
    places = [("towers", name, "run") for name in towers]
    chosen.remember_written(
        {path: text for path, text in recipe.written().items() if path[:3] not in places}
    )
    return chosen


def _warn_of_test(spec: EvalSpec) -> None:
    data = spec.keys.get("data")
    if isinstance(data, dict) and data.get("split") == "test":
        console.warn(
            f"soup: runs are chosen by '{spec.title}', which reads a test split; what it measures"
            " afterwards is too good. Choose by a validation split."
        )


def _say(
    towers: Sequence[str], title: str, runs: Sequence[str], found: Greedy, uniform: float
) -> None:
    rows = [[run, f"{score:.4f}", ""] for run, score in zip(runs, found.each, strict=True)]
    rows += [
        [f"+ {runs[tried.number]}", f"{tried.score:.4f}", "kept" if tried.kept else "left out"]
        for tried in found.trail
    ]
    rows.append([f"uniform average of {len(runs)}", f"{uniform:.4f}", ""])
    rows.append([f"greedy average of {len(found.taken)}", f"{found.score:.4f}", "taken"])
    console.print_table(f"Soup of {' and '.join(towers)} by {title}", ["runs", title, ""], rows)
