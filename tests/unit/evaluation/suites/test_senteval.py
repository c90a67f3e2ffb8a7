from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.text_folders import perfect_subject, random_subject, write_senteval
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.senteval_tasks import PROBING, TASKS
from vlkd_cli.evaluation.suites.senteval import SentEval


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_senteval(tmp_path_factory.mktemp("senteval"))


def test_a_perfect_encoder_scores_one_in_every_task(root: Path) -> None:
    results = {
        result.dataset: result
        for result in SentEval(data=str(root), classifier="sklearn", kfold=2).run(perfect_subject())
    }
    assert set(results) == {*TASKS, "average"} and len(PROBING) == 10
    for name, result in results.items():
        if "accuracy" in result.metrics:
            assert result.metrics["accuracy"] == 1, name
    assert results["MRPC"].metrics["f1"] == 1
    assert (
        results["STS-B"].metrics["spearman"] > 0.8 and results["SICK-R"].metrics["spearman"] > 0.8
    )


def test_a_random_encoder_stays_near_chance(root: Path) -> None:
    for result in SentEval(data=str(root), tasks=["MR", "TREC"], classifier="sklearn", kfold=2).run(
        random_subject()
    ):
        assert result.metrics["accuracy"] < result.chance["accuracy"] + 0.25, result.dataset


def test_the_torch_classifier_learns_what_logistic_regression_learns(root: Path) -> None:
    # Many small steps: on few rows the early stopping of the defaults ends near the start.
    (result,) = SentEval(data=str(root), tasks=["SST2"], hidden=20).run(perfect_subject())
    assert result.protocol == "split_paper" and result.settings["hidden"] == 20
    assert result.metrics["accuracy"] > 0.5


def test_word_content_is_always_linear(root: Path) -> None:
    content, length = SentEval(
        data=str(root), tasks=["WordContent", "Length"], classifier="fast", hidden=5
    ).run(random_subject())
    assert (content.settings["hidden"], length.settings["hidden"]) == (0, 5)


def test_items_are_sorted_by_tokens_then_label(root: Path) -> None:
    for name, task in TASKS.items():
        for part in task.read([root / file for file in task.files]):
            keys = [len(text.split()) for text in part.first]
            assert keys == sorted(keys), name
            if part.second is None:
                assert all(
                    a <= b
                    for a, b, same in zip(
                        part.labels, part.labels[1:], np.diff(keys) == 0, strict=False
                    )
                    if same
                ), name


def test_latin_1_is_read_and_the_byte_order_mark_is_not_a_label(root: Path) -> None:
    task = TASKS["MR"]
    assert task.read([root / file for file in task.files])[0].first[0].startswith("café one")
    assert sorted(
        set(TASKS["MRPC"].read([root / file for file in TASKS["MRPC"].files])[0].labels)
    ) == [0, 1]


def test_a_file_in_utf_16_is_named_with_the_line(tmp_path: Path) -> None:
    root = write_senteval(tmp_path, items=12)
    for task in ("MR", "SST2", "TREC", "MRPC", "SICK-E", "Tense"):
        path = root / TASKS[task].files[0]
        path.write_text(path.read_text(encoding="latin-1"), encoding="utf-16")
        with pytest.raises(DataError, match=rf"{path.name}:1: "):
            SentEval(data=str(root), tasks=[task]).run(random_subject())


def test_the_byte_order_mark_of_utf_8_is_not_part_of_a_sentence(tmp_path: Path) -> None:
    root = write_senteval(tmp_path, items=12)
    files = [root / file for file in TASKS["MR"].files]
    before = TASKS["MR"].read(files)[0].first
    files[0].write_bytes(b"\xef\xbb\xbf" + files[0].read_bytes())
    assert TASKS["MR"].read(files)[0].first == before


def test_missing_files_are_named(tmp_path: Path) -> None:
    root = write_senteval(tmp_path, items=12)
    (root / "probing/past_present.txt").unlink()
    with pytest.raises(DataError, match=r"Tense lacks probing/past_present\.txt"):
        SentEval(data=str(root), tasks=["Tense", "MR"]).run(random_subject())


def test_a_damaged_line_is_reported_with_its_position(root: Path, tmp_path: Path) -> None:
    broken = write_senteval(tmp_path, items=12)
    (broken / "downstream/TREC/TREC_10.label").write_text("NUM:dist how far\nnothing here\n")
    with pytest.raises(DataError, match=r"TREC_10\.label:2: expected 'COARSE:fine question'"):
        SentEval(data=str(broken), tasks=["TREC"]).run(random_subject())


def test_too_few_items_for_the_folds_say_so(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"MR: the rarest class has 6 items, and 10 folds need one each"
    ):
        SentEval(data=str(write_senteval(tmp_path, items=12)), tasks=["MR"]).run(random_subject())


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(RecipeError, match="'hidden' has no effect"):
        SentEval(classifier="sklearn", hidden=50)
    with pytest.raises(RecipeError, match="'dropout' has no effect"):
        SentEval(dropout=0.1)
    with pytest.raises(RecipeError, match="Did you mean 'SST2'"):
        SentEval(tasks=["sst2"])


def test_an_empty_sentence_has_no_tokens_and_comes_first(tmp_path: Path) -> None:
    root = write_senteval(tmp_path, items=12)
    with open(root / "downstream/MR/rt-polarity.pos", "a") as file:
        file.write("\n")
    with open(root / "downstream/MR/rt-polarity.neg", "a") as file:
        file.write("word\n")
    (part,) = TASKS["MR"].read([root / file for file in TASKS["MR"].files])
    assert (part.first[:2], part.labels[:2].tolist()) == ([".", "word"], [1, 0])


def test_blank_lines_and_further_columns_are_passed_over(tmp_path: Path) -> None:
    root = write_senteval(tmp_path, items=12)
    for file, line in (
        ("TREC/TREC_10.label", "\n"),
        ("SST/binary/sentiment-test", "a b\t1\tmore\n"),
    ):
        with open(root / "downstream" / file, "a") as opened:
            opened.write(line)
    sizes = [
        len(TASKS[name].read([root / file for file in TASKS[name].files])[-1].labels)
        for name in ("TREC", "SST2")
    ]
    assert sizes == [12, 13]


@pytest.mark.parametrize("classifier", ["sklearn", "fast"])
def test_training_sentences_of_one_class_are_refused(tmp_path: Path, classifier: Any) -> None:
    root = write_senteval(tmp_path)
    (root / "downstream/SST/binary/sentiment-train").write_text("a b\t1\n" * 30)
    with pytest.raises(
        DataError,
        match=(
            r"SST2 has training sentences of one class only in"
            r" downstream/SST/binary/sentiment-train"
        ),
    ):
        SentEval(data=str(root), tasks=["SST2"], classifier=classifier).run(random_subject())
