"""Data and towers that leave a suite little to work with: it reports that in one line, or gives
the right number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.fakes import COLORED, Colored, FakeReader, FakeTower, random_feature
from tests.support.suite_cases import class_of_picture, class_of_prompt, knowing_classes
from vlkd_cli.data.batch import Broken
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.evaluation.suites.knn import vote
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec


def run(subject: Subject, suite: str, **keys: Any) -> Result:
    (result,) = run_suites(subject, [EvalSpec.model_validate({"suite": suite, **keys})])
    return result


@pytest.mark.parametrize(
    ("suite", "keys"), [("few_shot", {}), ("linear_probe", {}), ("linear_probe", {"tune": False})]
)
def test_one_class_to_learn_from_is_too_few(suite: str, keys: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="all of one class"):
        run(
            knowing_classes(),
            suite,
            data={"reader": COLORED, "num_classes": 1, "num_samples": 16},
            **keys,
        )


@pytest.mark.parametrize("protocol", ["clip", "adamw", "elevater"])
def test_one_image_per_class_leaves_none_to_choose_settings_on(protocol: str) -> None:
    data = {"reader": COLORED, "num_samples": 8}
    with pytest.raises(DataError, match=r"one image per class.*`tune: false`"):
        run(knowing_classes(), "linear_probe", data=data, protocol=protocol)
    assert (
        run(knowing_classes(), "linear_probe", data=data, protocol=protocol, tune=False).metrics[
            "top1"
        ]
        > 0.1
    )


@pytest.mark.parametrize(
    "suite",
    ["zero_shot", "retrieval", "knn", "clustering", "few_shot", "linear_probe", "feature_analysis"],
)
def test_features_that_are_not_finite_are_reported_and_not_scored(suite: str) -> None:
    def odd(position: int) -> torch.Tensor:
        return class_of_picture(position) / (position % 10 != 3)  # infinity, and NaN where it was 0

    subject = Subject(FakeTower("image", odd, 8), FakeTower("text", random_feature(8), 8))
    with pytest.raises(
        DataError, match=r"\d+ of \d+ features of tower 'image' hold NaN or infinity"
    ):
        run(subject, suite, data={"reader": COLORED, "num_samples": 128})


def test_results_over_another_number_of_images_have_files_of_their_own():
    subject = Subject(
        FakeTower("image", class_of_picture, 8), FakeTower("text", random_feature(8), 8)
    )
    data = {"reader": COLORED, "num_samples": 16}
    results = [run(subject, "feature_analysis", data=data, limit=limit) for limit in (8, 12)]
    assert len({result.key for result in results}) == 2
    assert [result.settings["limit"] for result in results] == [8, 12]


@pytest.mark.parametrize("suite", ["retrieval", "feature_analysis"])
@pytest.mark.parametrize(
    ("odd", "message"),
    [("", "has no caption; .* needs one"), (Broken("has 3 columns"), "has 3 columns. Repair it")],
)
def test_an_image_without_a_readable_caption_is_named(
    suite: str, odd: str | Broken, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def captions(self: Any, index: int) -> list[str]:
        if index == 3 and isinstance(odd, Broken):
            raise odd
        return [odd if index == 3 else "a caption"]  # type: ignore[list-item]

    monkeypatch.setattr(Colored, "captions", captions)
    with pytest.raises(DataError, match=rf"3: {message}"):
        run(knowing_classes(), suite, data={"reader": COLORED, "num_samples": 16})


def test_a_head_with_outputs_that_are_not_finite_is_reported() -> None:
    head = torch.nn.Linear(8, 8)
    torch.nn.init.constant_(head.weight, torch.nan)
    with pytest.raises(DataError, match="hold NaN"):
        run(
            Subject(FakeTower("image", class_of_picture, 8, head=head), None),
            "clustering",
            data={"reader": COLORED},
        )


def test_features_that_are_all_zero_are_described() -> None:
    nothing = torch.zeros(8)
    subject = Subject(
        FakeTower("image", lambda _: nothing, 8), FakeTower("text", lambda _: nothing, 8)
    )
    result = run(subject, "feature_analysis", data={"reader": COLORED, "num_samples": 16})
    assert (result.metrics["pair_cosine"], result.metrics["image_mean_positive_cosine"]) == (0, 0)


def test_votes_at_a_low_temperature_go_to_the_nearest() -> None:
    train = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.9, 0.5]]))
    labels = torch.tensor([2, 1, 0])
    votes = vote(train, labels, train[:1], ks=(3,), temperature=0.001, num_classes=3)[3]
    assert torch.isfinite(votes).all()
    assert votes.argmax(1).tolist() == [2]


class Sparse(FakeReader):
    """Several labels are possible, and happen to be one or none."""

    multi_label = True

    def __init__(self, *, split: str = "val") -> None:
        labels = [(row % 8,) if row % 3 else () for row in range(48)]
        super().__init__(labels, classes=[f"kind {number}" for number in range(8)], split=split)


def test_data_that_is_multi_label_is_scored_so_even_if_no_image_has_two() -> None:
    subject = Subject(
        FakeTower("image", class_of_picture, 8), FakeTower("text", class_of_prompt, 8)
    )
    result = run(subject, "zero_shot", data={"reader": f"{__name__}:Sparse"})
    assert result.primary_metric == "mean_average_precision"
    # Every third row of a class is unlabeled and as near as the others, so precision is two thirds
    # at every recall.
    assert result.metrics["mean_average_precision"] == pytest.approx(2 / 3)


class TooFewNames(Sparse):
    """The last two of eight labels have no name."""

    def __init__(self, *, split: str = "val") -> None:
        super().__init__(split=split)
        self.classes = list(self.classes or ())[:6]


def test_a_label_beyond_the_names_of_multi_label_data_is_reported() -> None:
    with pytest.raises(DataError, match=r"label 7 is not one of the 6 classes \(0 to 5\)"):
        run(knowing_classes(), "zero_shot", data={"reader": f"{__name__}:TooFewNames"})
