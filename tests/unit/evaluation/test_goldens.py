"""Numbers that the originals produced, reproduced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd_cli.evaluation.metrics.classification import (
    mean_per_class,
    top_k_accuracy,
)
from vlkd_cli.evaluation.metrics.ranks import pair_ranks, rank_scores
from vlkd_cli.evaluation.probes.linear import logistic_regression
from vlkd_cli.evaluation.probes.peak_search import search_peak, search_peak_again
from vlkd_cli.evaluation.suites.clustering import cluster_scores
from vlkd_cli.evaluation.suites.knn import vote
from vlkd_cli.numerics.kmeans import kmeans

CASES = json.loads((Path(__file__).parents[2] / "golden" / "vision_suites.json").read_text())


def inputs_of(case: str) -> dict[str, Any]:
    """The variables that a case's recipe leaves."""
    names: dict[str, Any] = {"np": np}
    exec(CASES[case]["recipe"], names)
    return names


def close(value: float, case: str) -> Any:
    return pytest.approx(value, abs=max(CASES[case]["tolerance"], 1e-12))


def unit(values: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(values), dim=-1)


def test_retrieval_equals_clip_benchmark() -> None:
    case = "clip_benchmark.retrieval"
    names, expected = inputs_of(case), CASES[case]["expected"]
    images, texts = unit(names["img"]), unit(names["txt"])
    ranks = pair_ranks(images, texts, torch.from_numpy(names["cap_per"]))
    to_text, to_image = (rank_scores(found, (1, 5, 10)) for found in ranks)
    for k in (1, 5, 10):
        assert to_text.recall[k] == close(expected[f"text_retrieval_recall@{k}"], case)
        assert to_image.recall[k] == close(expected[f"image_retrieval_recall@{k}"], case)


def test_ranks_of_pairs_equal_open_clip() -> None:
    case = "open_clip.get_clip_metrics"
    names, expected = inputs_of("clip_benchmark.retrieval"), CASES[case]["expected"]
    first_captions = np.cumsum(names["cap_per"]) - names["cap_per"]
    images, texts = unit(names["img"]), unit(names["txt"][first_captions])
    ranks = pair_ranks(images, texts, torch.ones(30, dtype=torch.int64))
    for direction, found in zip(("image_to_text", "text_to_image"), ranks, strict=True):
        scores = rank_scores(found, (1, 5, 10))
        assert scores.mean_rank == close(expected[f"{direction}_mean_rank"], case)
        assert scores.median_rank == close(expected[f"{direction}_median_rank"], case)
        for k in (1, 5, 10):
            assert scores.recall[k] == close(expected[f"{direction}_R@{k}"], case)


def test_accuracies_equal_clip_benchmark() -> None:
    case = "clip_benchmark.accuracy"
    names, expected = inputs_of(case), CASES[case]["expected"]
    scores, labels = torch.from_numpy(names["lo"]), torch.from_numpy(names["ta"])
    assert top_k_accuracy(scores, labels, 1) == close(expected["acc1"], case)
    assert top_k_accuracy(scores, labels, 5) == close(expected["acc5"], case)
    assert mean_per_class(scores.argmax(1), labels) == close(
        expected["mean_per_class_recall"], case
    )


def test_knn_equals_dino_and_itra() -> None:
    case = "dino.weighted_knn"
    names, expected = inputs_of(case), CASES[case]["expected"]
    labels, truth = torch.from_numpy(names["ytr"]), torch.from_numpy(names["yte"])
    scores = vote(
        unit(names["Xtr"]),
        labels,
        unit(names["Xte"]),
        ks=(1, 10, 20, 100),
        temperature=0.07,
        num_classes=6,
    )
    for k, votes in scores.items():
        assert 100 * top_k_accuracy(votes, truth, 1) == close(expected[f"k{k}"]["top1"], case)
        # DINO looks at no more classes than there are votes.
        assert 100 * top_k_accuracy(votes, truth, min(5, k)) == close(
            expected[f"k{k}"]["top5"], case
        )
    assert 100 * top_k_accuracy(scores[20], truth, 1) == close(expected["itra_k20_top1"], case)


def test_clustering_scores_equal_protoclip() -> None:
    case = "protoclip.clustering_scores"
    names, expected = inputs_of(case), CASES[case]["expected"]
    scores = cluster_scores(torch.from_numpy(names["la"]), torch.from_numpy(names["pb"]))
    for metric in ("ari", "ami", "nmi"):
        assert scores[metric] == close(expected[metric], case)


def test_kmeans_finds_separate_blobs() -> None:
    case = "protoclip.kmeans_blobs"
    names, expected = inputs_of(case), CASES[case]["expected"]
    clusters = kmeans(torch.from_numpy(names["Xn"]), 3, num_restarts=5, num_candidates=3)
    scores = cluster_scores(torch.from_numpy(names["yl"]), clusters.labels)
    assert scores["ari"] == close(expected["ari"], case)
    assert scores["ami"] == close(expected["ami"], case)
    assert scores["accuracy"] == 1


@pytest.mark.parametrize("C", [0.316, 3.16])
def test_logistic_regression_equals_itra(C: float) -> None:
    case = "itra.sklearn_logreg"
    names, expected = inputs_of("dino.weighted_knn"), CASES[case]["expected"][f"C{C}"]
    fitted = logistic_regression(
        torch.from_numpy(names["Xtr"]), torch.from_numpy(names["ytr"]), C=C
    )
    assert 100 * fitted.score(names["Xte"], names["yte"]) == close(expected["acc"], case)
    assert np.linalg.norm(fitted.coef_) == close(expected["coef_fro"], case)


def test_peak_search_visits_as_elevater_does() -> None:
    expected = CASES["elevater.hparam_sweep"]["expected"]
    found = search_peak(lambda positions: [100 - abs(position - 41) for position in positions])
    assert found.visited == expected["a"]["visited_idx_for_first_lr"]
    assert found.position == expected["a"]["best_wd_idx"]
    flat = search_peak(lambda positions: [50.0] * len(positions))
    assert flat.visited == expected["b"]["visited_idx_for_first_lr"]
    assert flat.position == expected["b"]["best_wd_idx"]


def test_repeated_peak_search_visits_as_clip_benchmark_does() -> None:
    expected = CASES["clip_benchmark.linear_probe.wd_search"]["expected"]
    found = search_peak_again(
        lambda positions: [1 - abs(position - 41) / 100 for position in positions]
    )
    assert (found.visited, found.position) == (expected["a"]["visited"], expected["a"]["peak_idx"])
    zero = search_peak_again(lambda positions: [0.0] * len(positions))
    assert (zero.visited, zero.position) == (
        expected["zero"]["visited"],
        expected["zero"]["peak_idx"],
    )
