"""Which of several runs a tower averages: `soup: {greedy: EVAL}` of a recipe, decided by that
evaluation before a run starts."""

from __future__ import annotations

from collections.abc import Sequence

from vlkd_cli import console
from vlkd_cli.distributed.runtime import pick_device
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.numerics.directions import lower_is_better
from vlkd_cli.recipe.evaluation_data import with_data
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.towers.soup import Greedy, greedy


def decide_soups(recipe: Recipe) -> Recipe:
    """The recipe with each `soup: {greedy: EVAL}` replaced by the runs that greedy averaging
    selects. Towers with the same runs and the same evaluation are averaged together.

    Raises:
        UserError: a run or the evaluation's data cannot be read.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, tower in recipe.towers.items():
        if isinstance(tower.soup, dict) and isinstance(tower.run, list):
            groups.setdefault((tower.soup["greedy"], *tower.run), []).append(name)
    for (title, *runs), towers in groups.items():
        spec = next(entry for entry in recipe.evals if entry.title == title)
        score = _Score(recipe, spec, towers, runs)
        found, uniform = greedy(len(runs), score), score(range(len(runs)))
        _say(towers, title, runs, found, uniform, score.sign)
        recipe = _with_runs(recipe, towers, [runs[number] for number in found.taken])
    return recipe


class _Score:
    """The primary metric of an evaluation, the mean over its data sets, with the average of some
    runs; negated where lower is better."""

    def __init__(
        self, recipe: Recipe, spec: EvalSpec, towers: Sequence[str], runs: Sequence[str]
    ) -> None:
        self.recipe, self.spec, self.towers, self.runs = recipe, spec, towers, runs
        self.sign = 1
        self._has_warned = False

    def __call__(self, numbers: Sequence[int]) -> float:
        chosen = _with_runs(self.recipe, self.towers, [self.runs[number] for number in numbers])
        device = pick_device("auto")
        built = load_towers(chosen, None, None)
        for tower in built.values():
            tower.to(device)
        results = run_suites(subject_of(chosen, built, device), [with_data(self.recipe, self.spec)])
        self._warn_of_test(results)
        self.sign = -1 if lower_is_better(results[0].primary_metric) else 1
        values = [result.metrics[result.primary_metric] for result in results]
        return self.sign * sum(values) / len(values)

    def _warn_of_test(self, results: Sequence[Result]) -> None:
        if not self._has_warned and any(result.split == "test" for result in results):
            console.warn(
                f"soup: runs are chosen by '{self.spec.title}', which reads a test split; what it"
                " measures afterwards is too good. Choose by a validation split."
            )
            self._has_warned = True


def _with_runs(recipe: Recipe, towers: Sequence[str], runs: list[str]) -> Recipe:
    keys = {"run": runs if len(runs) > 1 else runs[0], "soup": "uniform" if len(runs) > 1 else None}
    changed = {name: recipe.towers[name].model_copy(update=keys) for name in towers}
    chosen = recipe.model_copy(update={"towers": {**recipe.towers, **changed}})
    replaced = [("towers", name, "run") for name in towers]
    chosen.remember_written(
        {path: text for path, text in recipe.written().items() if path[:3] not in replaced}
    )
    return chosen


def _say(
    towers: Sequence[str],
    title: str,
    runs: Sequence[str],
    found: Greedy,
    uniform: float,
    sign: int,
) -> None:
    def shown(score: float) -> str:
        return f"{sign * score:.4f}"

    rows = [[run, shown(score), ""] for run, score in zip(runs, found.each, strict=True)]
    rows += [
        [f"+ {runs[tried.number]}", shown(tried.score), "added" if tried.is_added else "left out"]
        for tried in found.trail
    ]
    rows.append([f"uniform average of {len(runs)}", shown(uniform), ""])
    rows.append([f"greedy average of {len(found.taken)}", shown(found.score), "taken"])
    console.print_table(f"Soup of {' and '.join(towers)} by {title}", ["runs", title, ""], rows)
