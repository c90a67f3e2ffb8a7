"""Evaluations of a run: what is checked before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import tiny_recipe, train
from vlkd_cli.engine.periodic import Watched, check_best, watched_value
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures

MEASURED = [
    ("zero_shot", Measures(["shapes"], ["top1", "top5"])),
    ("zero_shot", Measures(["unseen"], ["top1", "wise_ft_0.5_top1"])),
    ("mine", None),
    ("passages", Measures([], ["mrr@10"])),
]


@pytest.mark.parametrize(
    "best",
    [
        None,
        "zero_shot.top5",
        "zero_shot.unseen.top1",
        "zero_shot.unseen.wise_ft_0.5_top1",
        "mine.anything",
        "passages.msmarco[900].mrr@10",
    ],
)
def test_a_metric_that_an_entry_gives_is_accepted(best: str | None) -> None:
    check_best(best, MEASURED)


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ("zero_shot.tpo1", "'zero_shot' has no metric 'tpo1'. Did you mean 'top1'? It has: top1,"),
        ("zero_shot.unsene.top1", "'zero_shot' does not measure data 'unsene'. Did you mean 'un"),
        ("zero_shot.shapes.top9", "'zero_shot' has no metric 'top9'."),
        ("passages.mrr", "'passages' has no metric 'mrr'."),
    ],
)
def test_a_metric_that_no_entry_gives_is_refused(best: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_best(best, MEASURED)
    assert str(caught.value).startswith(f"train.best: {said}")


EVAL: dict[str, Any] = {
    "suite": "retrieval",
    "k": [1],
    "data": {"reader": "shapes", "split": "val", "num_samples": 4, "size_px": 32},
}


def test_a_wrong_metric_ends_a_run_before_its_first_step(tmp_path: Path) -> None:
    recipe = tiny_recipe(evals=[EVAL], train={"best": "retrieval.text_to_image_R@5"})
    with pytest.raises(RecipeError, match="train.best: 'retrieval' has no metric .* It has: image"):
        train(tmp_path, recipe)
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_data_ends_a_run_before_its_first_step_and_names_the_entry(tmp_path: Path) -> None:
    missing = {"suite": "retrieval", "data": {"reader": "csv", "path": str(tmp_path / "no.csv")}}
    with pytest.raises(DataError, match=r"no.csv: no such file. Check evals\[1\].data.path"):
        train(tmp_path, tiny_recipe(evals=[EVAL, missing]))
    assert not list(tmp_path.rglob("*.pt"))


def result(**fields: Any) -> Result:
    plain: dict[str, Any] = {
        "name": "zero_shot",
        "dataset": "shapes",
        "primary_metric": "top1",
        "metrics": {"top1": 0.5},
        "num_items": 4,
        "model": None,
    }
    text = dict.fromkeys(("suite", "split", "protocol", "precision"), "")
    empty = ("chance", "num_classes", "towers", "hashes", "data", "settings", "libraries")
    return Result(**{**text, **{name: {} for name in empty}, **plain, **fields})


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (None, None),
        ("knn.top1", None),
        ("zero_shot.top1", ("top1", 0.5)),
        ("zero_shot.unseen.top1", ("top1", 0.25)),
        ("zero_shot.wise_ft_0.5_top1", ("wise_ft_0.5_top1", 0.75)),
        ("zero_shot.not_due_now.top1", None),
    ],
)
def test_the_watched_value_is_that_of_its_data_and_metric(
    best: str | None, expected: tuple[str, float] | None
) -> None:
    other = {"dataset": "unseen", "metrics": {"top1": 0.25, "wise_ft_0.5_top1": 0.75}}
    assert watched_value(best, [result(), result(**other)]) == expected


def test_a_metric_that_a_suite_does_not_have_after_all_is_named() -> None:
    with pytest.raises(RecipeError, match="suite 'zero_shot' has no metric 'top5'. It has: top1"):
        watched_value("zero_shot.top5", [result()])


@pytest.mark.parametrize(
    ("metric", "value", "best", "improves"),
    [
        ("top1", 0.5, None, True),
        ("top1", 0.5, 0.4, True),
        ("top1", 0.5, 0.5, False),
        ("image_to_text_median_rank", 3.0, 4.0, True),
        ("image_to_text_median_rank", 5.0, 4.0, False),
        ("mae_years", 5.0, 4.0, False),
        ("top1", float("nan"), None, False),
        ("top1", float("nan"), 0.1, False),
    ],
)
def test_better_is_higher_except_for_ranks_and_errors(
    metric: str, value: float, best: float | None, improves: bool
) -> None:
    assert Watched(metric, value).improves_on(best) is improves
