"""The toolkit's metric values, and those of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.elevater_goldens import golden, sampled
from vlkd_cli.elevater.metrics import (
    METRICS,
    accuracy,
    chance,
    map_11_points,
    mean_per_class,
    roc_auc,
)
from vlkd_cli.errors import DataError


def test_11_point_map_is_the_toolkits_and_depends_on_the_softmax() -> None:
    arrays, expected = sampled("map_11_points"), golden("map_11_points")["expected"]
    targets, logits = arrays["Y"], arrays["L"]
    raised = np.exp(logits - logits.max(1, keepdims=True))
    softmax = raised / raised.sum(1, keepdims=True)
    assert map_11_points(softmax, targets) == pytest.approx(expected["map_softmax"], abs=1e-9)
    assert map_11_points(1 / (1 + np.exp(-logits)), targets) == pytest.approx(
        expected["map_sigmoid"], abs=1e-9
    )
    assert map_11_points(logits, targets) == pytest.approx(expected["map_raw_logits"], abs=1e-9)
    per_class = [map_11_points(softmax[:, [column]], targets[:, [column]]) for column in range(4)]
    assert per_class == pytest.approx(expected["per_class_ap_softmax_first4"], abs=1e-9)


def test_11_point_map_with_ties_follows_scikit_learns_curve() -> None:
    from sklearn.metrics import precision_recall_curve

    generator = np.random.RandomState(0)
    for positives in (3, 10):
        targets = np.zeros(30, dtype=np.int64)
        targets[:positives] = 1
        scores = np.round(generator.rand(30), 1)
        precision, recall, _ = precision_recall_curve(targets, scores)
        expected = np.mean(
            [precision[recall >= threshold].max() for threshold in np.linspace(1, 0, 11)]
        )
        assert map_11_points(scores[:, None], targets[:, None]) == pytest.approx(
            expected, abs=1e-12
        )


def test_mean_per_class_and_accuracy_are_the_toolkits() -> None:
    arrays, expected = sampled("mean_per_class"), golden("mean_per_class")["expected"]
    assert mean_per_class(arrays["P"], arrays["t"]) == pytest.approx(
        expected["mean_per_class"], abs=1e-9
    )
    assert accuracy(arrays["P"], arrays["t"]) == pytest.approx(expected["accuracy"], abs=1e-9)


def test_ties_go_to_the_lowest_column() -> None:
    (case,) = golden("accuracy.ties")["inputs"]
    assert (
        accuracy(np.array(case["P"]), np.array(case["t"]))
        == golden("accuracy.ties")["expected"]["accuracy"]
    )


def test_columns_of_absent_classes_are_out_before_the_highest_is_taken() -> None:
    scores = np.array([[0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    assert accuracy(scores, np.array([1, 1])) == 0.5
    assert mean_per_class(scores, np.array([1, 1])) == 1.0


def test_roc_auc_is_the_toolkits_with_and_without_ties() -> None:
    arrays, expected = sampled("roc_auc"), golden("roc_auc")["expected"]
    assert roc_auc(arrays["sb"], arrays["tb"]) == pytest.approx(expected["auc"], abs=1e-9)
    assert roc_auc(np.round(arrays["sb"], 1), arrays["tb"]) == pytest.approx(
        expected["auc_rounded_1_decimal"], abs=1e-9
    )
    with pytest.raises(DataError, match="both classes"):
        roc_auc(arrays["sb"], np.zeros(50, dtype=np.int64))


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_scores_give_1_and_random_ones_chance(metric: str) -> None:
    generator = np.random.RandomState(0)
    classes = 2 if metric == "roc_auc" else 4
    labels = generator.randint(0, classes, 4000)
    targets = np.eye(classes, dtype=np.int64)[labels] if metric == "11point_mAP" else labels
    assert METRICS[metric](np.eye(classes)[labels], targets) == 1.0
    expected = chance(metric, classes, targets)
    found = METRICS[metric](generator.rand(4000, classes), targets)
    assert found == pytest.approx(expected, abs=0.03)
