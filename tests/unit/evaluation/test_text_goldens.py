"""Numbers that the original implementations produced; each case names its source in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd_cli.evaluation.metrics.correlation import SIMILARITIES, pair_similarity, pearson, spearman
from vlkd_cli.evaluation.probes.relatedness import relatedness, soft_targets
from vlkd_cli.evaluation.probes.transfer import Protocol, folds_then_test, given_split, nested_folds
from vlkd_cli.evaluation.suites.sts import aggregate
from vlkd_cli.evaluation.suites.word_similarity import score_pairs

GOLDENS = json.loads(
    (Path(__file__).parents[2] / "golden" / "text_evals.json").read_text(encoding="utf-8")
)
CASES = {case["name"]: case for case in GOLDENS["cases"]}
STS = {
    name: (np.array(subset["emb1"]), np.array(subset["emb2"]), np.array(subset["gold"]))
    for name, subset in GOLDENS["data"]["sts"].items()
}


def expected(name: str) -> Any:
    return CASES[name]["expected"]


def test_sts_aggregations_equal_senteval_and_the_concatenated_setting() -> None:
    gold = {name: scores for name, (_, _, scores) in STS.items()}
    figures, table = aggregate(
        {name: pair_similarity(first, second) for name, (first, second, _) in STS.items()}, gold
    )
    for metric in ("spearman", "pearson"):
        for kind in ("all", "mean", "wmean"):
            assert figures[f"{metric}_{kind}"] == pytest.approx(
                expected("sts_all_concatenated")[metric][kind], abs=1e-6
            )
        for name, row in table.items():
            assert row[metric] == pytest.approx(
                expected("sts_sentEval_per_subset_mean_wmean")[name][metric], abs=1e-6
            )


def test_four_similarities_equal_sentence_transformers() -> None:
    for name, (first, second, gold) in STS.items():
        found = {}
        for kind in SIMILARITIES:
            found[f"pearson_{kind}"] = pearson(pair_similarity(first, second, kind), gold)
            found[f"spearman_{kind}"] = spearman(pair_similarity(first, second, kind), gold)
        for metric, value in found.items():
            assert value == pytest.approx(
                expected("st57_embedding_similarity")[name][metric], abs=1e-5
            ), (name, metric)
        best = max(value for metric, value in found.items() if metric.startswith("spearman"))
        assert best == pytest.approx(
            expected("st22_embedding_similarity_return_value")[name], abs=1e-5
        )


def test_relatedness_targets_equal_senteval() -> None:
    case = CASES["sick_relatedness_label_encoding"]
    assert torch.allclose(
        soft_targets(np.array(case["inputs"]["y"])), torch.tensor(case["expected"]["Y"]), atol=1e-6
    )


def test_supervised_relatedness_equals_senteval() -> None:
    random = np.random.RandomState(9)

    def part(rows: int) -> tuple[torch.Tensor, np.ndarray]:
        first = random.randn(rows, 6)
        second = first * random.uniform(0, 1, (rows, 1)) + random.randn(rows, 6) * 0.6
        cosine = (
            (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        )
        scores = np.clip(1 + 4 * (cosine + 1) / 2 + random.randn(rows) * 0.15, 1, 5).round(2)
        return (
            torch.from_numpy(np.concatenate([np.abs(first - second), first * second], 1)).float(),
            scores,
        )

    train, dev, test = part(160), part(60), part(60)
    found = relatedness(train, dev, test, device=torch.device("cpu"))
    golden = expected("senteval_relatedness_supervised")
    assert found.dev_pearson == pytest.approx(golden["devpearson"], abs=0.02)
    assert found.pearson == pytest.approx(golden["test_pearson"], abs=0.02)
    assert found.spearman == pytest.approx(golden["test_spearman"], abs=0.02)
    assert found.mse == pytest.approx(golden["mse"], abs=0.02)


def classified(
    rows: int, classes: int, seed: int, separation: float
) -> tuple[torch.Tensor, np.ndarray]:
    random = np.random.RandomState(seed)
    labels = np.arange(rows) % classes
    centers = random.randn(classes, 8) * separation
    return torch.from_numpy(centers[labels] + random.randn(rows, 8)).float(), labels


@pytest.mark.parametrize("kind", ["paper", "sklearn"])
def test_the_three_selection_schemes_equal_senteval(kind: Any) -> None:
    protocol = Protocol(kind, folds=3)
    nested = nested_folds(*classified(200, 2, 5, 0.45), protocol)
    features, labels = classified(240, 3, 6, 0.5)
    folds = folds_then_test(
        (features[:180], labels[:180]), (features[180:], labels[180:]), protocol
    )
    features, labels = classified(300, 3, 7, 0.5)
    cuts = [slice(0, 180), slice(180, 240), slice(240, 300)]
    split = given_split(*((features[cut], labels[cut]) for cut in cuts), protocol)
    golden = expected("senteval_classifiers")
    for name, scores in (("inner_kfold", nested), ("kfold", folds), ("split", split)):
        wanted = golden[f"{name}_usepytorch_{kind == 'paper'}"]
        assert scores.dev == pytest.approx(wanted["dev"], abs=3.0), name
        assert scores.test == pytest.approx(wanted["test"], abs=3.0), name


def test_policies_for_words_without_vector_equal_the_originals() -> None:
    data = GOLDENS["data"]["ws"]
    words = [*data["vectors"], "zzz_oov"]
    vectors = np.array([*data["vectors"].values(), [0.0] * 5])[:, None]
    known = np.array([True] * 12 + [False])
    first, second = (
        np.array([words.index(pair[side]) for pair in data["pairs"]]) for side in (0, 1)
    )
    gold = np.array([pair[2] for pair in data["pairs"]])
    for policy, name in (
        ("skip", "skip_oov"),
        ("zero", "zero_vector_for_oov"),
        ("mean", "mean_vector_for_oov"),
    ):
        score, used = score_pairs(vectors, first, second, gold, known, policy)  # type: ignore[arg-type]
        assert score == pytest.approx(
            expected("word_similarity_oov_policies")[name]["spearman"], abs=1e-6
        )
        assert used == expected("word_similarity_oov_policies")[name]["pairs_used"]
