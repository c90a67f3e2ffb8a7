"""The result that `train.best` names: found, compared, and waited for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import final_state, tiny_recipe, train
from vlkd_cli.engine.watching import Watch, Watched, check_best, watched_value
from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures
from vlkd_cli.recipe.schema import TrainSpec
from vlkd_cli.reports.csv import read_metrics
from vlkd_cli.reports.state import read_state

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "many_runs.json").read_text())
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
    ("best", "message"),
    [
        ("zero_shot.tpo1", "'zero_shot' has no metric 'tpo1'. Did you mean 'top1'? It has: top1,"),
        ("zero_shot.unsene.top1", "'zero_shot' does not measure data 'unsene'. Did you mean 'un"),
        ("zero_shot.shapes.top9", "'zero_shot' has no metric 'top9'."),
        ("passages.mrr", "'passages' has no metric 'mrr'."),
    ],
)
def test_a_metric_that_no_entry_gives_is_refused(best: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_best(best, MEASURED)
    assert str(caught.value).startswith(f"train.best: {message}")


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


@pytest.mark.parametrize("case", GOLDEN["patience"])
def test_patience_stops_after_the_evaluation_of_the_specification(case: dict[str, Any]) -> None:
    metric = "median_rank" if case["lower_is_better"] else "top1"
    watch = Watch(
        TrainSpec(
            best=f"zero_shot.{metric}", patience=case["patience"], min_delta=case["min_delta"]
        )
    )
    stops, best = None, None
    for number, value in enumerate(case["values"]):
        if watch.note([result(metrics={metric: value}, primary_metric=metric)]):
            best = number
        if watch.is_over:
            stops = number
            break
    assert (stops, best) == (case["stops_after_evaluation"], case["best_evaluation"])


def test_results_without_the_watched_one_and_runs_without_patience_wait_for_nothing() -> None:
    watch = Watch(TrainSpec(best="zero_shot.top1", patience=1))
    assert watch.note([result()]) and not watch.note([result(name="knn")])
    assert not watch.is_over
    assert not watch.note([result(metrics={"top1": float("nan")})]) and watch.is_over
    assert not Watch(TrainSpec(best="zero_shot.top1"), waited=9).is_over


EVAL: dict[str, Any] = {
    "suite": "retrieval",
    "k": [1],
    "data": {"reader": "shapes", "split": "val", "num_samples": 4, "size_px": 32},
}
RARE = {**EVAL, "name": "rare"}


def patient(patience: int, **sections: Any) -> dict[str, Any]:
    """A run that cannot improve: its learning rate moves nothing that the metric sees."""
    settings = {"steps": 12, "best": "retrieval.mean_recall", "patience": patience}
    return tiny_recipe(
        evals=[{**EVAL, "every_steps": 2}, RARE],
        train={"epochs": 9, **settings},
        optimizer={"lr": 1e-30},
        **sections,
    )


def test_a_run_without_improvement_ends_early_with_the_suites_of_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.engine.recipes import write_recipe
    from vlkd_cli.engine.launching.start import TrainRequest, start_training

    request = TrainRequest(recipe=write_recipe(tmp_path, patient(2)), run=tmp_path / "run")
    assert start_training(request) == 0
    message = capsys.readouterr().out
    assert "stopped early at step 6 of 12: no improvement in 2 evaluations" in message
    assert "at step 2 (checkpoints/best.pt); at the end" in message
    state, metrics = read_state(tmp_path / "run"), read_metrics(tmp_path / "run")
    assert state is not None
    assert (state.state, state.step, state.total_steps, state.best_step) == ("finished", 6, 12, 2)
    assert [step for step, _ in metrics["eval/rare.shapes.mean_recall"]] == [6]
    assert [step for step, _ in metrics["eval/retrieval.shapes.mean_recall"]] == [2, 4, 6]
    saved = final_state(tmp_path / "run")
    assert (saved["step"], saved["waited"], saved["evaluated"]) == (6, 2, True)


def test_a_run_that_ended_early_resumes_with_more_patience_only(tmp_path: Path) -> None:
    run = train(tmp_path, patient(1))
    assert final_state(run)["step"] == 4
    train(tmp_path, patient(1), resume=str(run))
    assert final_state(run)["step"] == 4
    train(tmp_path, patient(3), resume=str(run))
    assert (final_state(run)["step"], final_state(run)["waited"]) == (8, 3)
