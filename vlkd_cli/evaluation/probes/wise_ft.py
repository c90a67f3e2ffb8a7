"""Between a tower's start and its end: weight interpolation, and what it is worth."""

from __future__ import annotations

import copy
import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vlkd_cli import console
from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites, write_result
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.towers.merging import plain
from vlkd_cli.towers.tower import Tower


def interpolate_states(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end for every floating-point entry; integers, such as batch
    counters, come from the end.

    Args:
        start: a state dict, alpha 0.
        end: another of the same model, alpha 1.

    Raises:
        CheckpointError: the two are of different models; the line names the first entry that
            differs.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, arXiv:2109.01903;
    github mlfoundations/wise-ft, whose batch counters become fractions and are cut off when loaded.
    """
    for name in [*start, *end]:
        if name not in start or name not in end or start[name].shape != end[name].shape:
            raise CheckpointError(
                f"start and end do not fit each other: '{name}' is missing in one of them or has"
                " another shape."
            )
    return {
        name: (
            torch.lerp(start[name].to(value), value, alpha) if value.is_floating_point() else value
        )
        for name, value in end.items()
    }


def interpolate_towers(start: Tower, end: Tower, alpha: float) -> Tower:
    """A new tower between two of the same making; parts that are frozen are those of the end, and
    adapters are merged into the weights.

    Raises:
        CheckpointError: the two are built differently.
    """
    if start.encoder.settings != end.encoder.settings or not start.same_input(end):
        raise CheckpointError(
            f"tower '{end.name}': start and end are built differently (model, activation or image"
            " size), so the weights between them mean nothing. Build the start with the run's own"
            " recipe."
        )
    # A path between the factors of an update does not connect the weights.
    start, end = plain(start), plain(end)
    between = copy.deepcopy(end)
    between.load_state_dict(interpolate_states(start.state_dict(), end.state_dict(), alpha))
    return between


def wise_ft(
    subject: Subject,
    specs: Sequence[EvalSpec],
    alphas: Sequence[float],
    *,
    folder: Path | None = None,
) -> list[Result]:
    """Run suites with every tower of `subject.starts` at each alpha between its start (0) and its
    end (1).

    The curve is printed. Results record their alpha in protocol and settings; with a folder they
    are written, the curve as `wise_ft.csv`, ranked lists and the like below `wise_ft_ALPHA`.

    Raises:
        RecipeError: nothing was trained that could be interpolated.
    """
    if not subject.starts:
        raise RecipeError(
            "--wise-ft: no tower that is evaluated was trained in this run, so start and end are"
            " the same."
        )
    if not alphas:
        raise RecipeError("--wise-ft needs at least one number, e.g. 0,0.5,1.")
    results: list[Result] = []
    for alpha in alphas:
        between = _at(subject, alpha)
        for result in run_suites(between, specs):
            named = replace(
                result,
                protocol=f"{result.protocol}_alpha{alpha:g}",
                settings={**result.settings, "wise_ft_alpha": alpha},
            )
            results.append(named)
            if folder is not None and is_main():
                write_result(named, folder)
    if folder is not None and is_main():
        _write_curve(results, folder / "wise_ft.csv")
    print_curve(results)
    return results


def _at(subject: Subject, alpha: float) -> Subject:
    """The subject with its towers between start and end."""
    towers = dict(subject.towers)
    # What suites write next to their results is not the run's own.
    output = subject.output and subject.output / f"wise_ft_{alpha:g}"
    chosen = replace(subject, output=output)
    for name, start in subject.starts.items():
        end = towers[name]
        towers[name] = interpolate_towers(start, end, alpha).to(subject.device)
        if chosen.tower(end.modality) is end:
            chosen = chosen.with_tower(towers[name])
    return replace(chosen, towers=towers)


def print_curve(results: Sequence[Result]) -> None:
    """A table with one line per alpha and one column per suite and data set, each with its
    primary metric."""
    curves = _curves(results)
    columns = list(curves)
    alphas = sorted({alpha for curve in curves.values() for alpha in curve})
    rows = [
        [f"{alpha:g}", *(_cell(curves[column].get(alpha)) for column in columns)]
        for alpha in alphas
    ]
    console.print_table("WiSE-FT: 0 is the start, 1 the end", ["alpha", *columns], rows)


def _curves(results: Sequence[Result]) -> dict[str, dict[float, float]]:
    curves: dict[str, dict[float, float]] = {}
    for result in results:
        name = f"{result.name} {result.dataset} {result.primary_metric}"
        alpha = result.settings["wise_ft_alpha"]
        assert isinstance(alpha, int | float)
        curves.setdefault(name, {})[float(alpha)] = result.metrics[result.primary_metric]
    return curves


def _cell(value: float | None) -> str:
    """The value and a bar of up to 20 marks, so that the column reads as a curve."""
    if value is None:
        return ""
    marks = "#" * round(20 * min(max(value, 0.0), 1.0))
    return f"{value:.4f} {marks}"


def _write_curve(results: Sequence[Result], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["alpha", "suite", "dataset", "metric", "value"])
        for result in results:
            for metric, value in result.metrics.items():
                table.writerow(
                    [result.settings["wise_ft_alpha"], result.name, result.dataset, metric, value]
                )
