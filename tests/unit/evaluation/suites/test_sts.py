from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.fakes import FakeTower
from tests.support.text_folders import perfect_subject, random_subject, write_sts
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.metrics.correlation import pair_similarity
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suites.sts import STS, SUBSETS
from vlkd_cli.features.subject import Subject


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sts(tmp_path_factory.mktemp("sts"))


def by_set(results: list[Result]) -> dict[str, Result]:
    return {result.dataset: result for result in results}


def test_a_perfect_encoder_scores_one_in_every_aggregation(root: Path) -> None:
    results = by_set(STS(data=str(root)).run(perfect_subject()))
    assert list(results) == [*SUBSETS, "STSB", "SICKR", "STSB-dev", "average"]
    for result in results.values():
        for metric, value in result.metrics.items():
            assert value == pytest.approx(1, abs=1e-3), (result.dataset, metric)
    assert set(results["STS12"].metrics) == {
        f"{metric}_{kind}"
        for metric in ("spearman", "pearson")
        for kind in ("all", "mean", "wmean")
    }


def test_pairs_without_gold_score_are_skipped_and_counted(root: Path) -> None:
    results = by_set(STS(data=str(root), sets=["STS13", "STS14"]).run(perfect_subject()))
    assert (results["STS13"].num_items, results["STS13"].num_skipped) == (35, 1)
    assert (results["STS14"].num_items, results["STS14"].num_skipped) == (72, 0)


def test_the_two_sizes_of_sick_are_distinguished(root: Path) -> None:
    results = by_set(STS(data=str(root), sets=["SICKR", "SICKR-all"]).run(perfect_subject()))
    assert (results["SICKR"].num_items, results["SICKR-all"].num_items) == (12, 36)
    assert len(results["SICKR-all"].hashes) == 3


def test_results_name_protocol_aggregation_files_and_versions(root: Path) -> None:
    result = STS(data=str(root), sets=["STS16"], aggregation="wmean").run(random_subject())[0]
    assert (result.protocol, result.primary_metric, result.settings["aggregation"]) == (
        "unsupervised_cosine",
        "spearman_wmean",
        "wmean",
    )
    assert len(result.hashes) == 10
    assert {"numpy", "scipy", "torch"} <= set(result.libraries)
    assert json.loads(json.dumps(result.to_json())) == result.to_json()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("STS/STS12-en-test/STS.input.MSRvid.txt", "STS12"),
        ("STS/STS12-en-test/STS.gs.MSRvid.txt", "STS12"),
        ("STS/STSBenchmark/sts-test.csv", "STSB"),
        ("SICK/SICK_test_annotated.txt", "SICKR"),
    ],
)
def test_a_file_in_another_encoding_is_named_with_the_line(
    tmp_path: Path, file: str, name: str
) -> None:
    path = write_sts(tmp_path) / "downstream" / file
    text = path.read_text(encoding="utf-8")
    last = text.count("\n") + 1
    for encoding, added, line in (("utf-16", "", 1), ("latin-1", "caf\xe9\n", last)):
        path.write_text(text + added, encoding=encoding)
        with pytest.raises(DataError, match=rf"{path.name}:{line}: .* is not utf-8 text"):
            STS(data=str(tmp_path), sets=[name]).run(perfect_subject())


def test_sets_that_are_not_there_are_named_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_sts(tmp_path)
    (root / "downstream/STS/STS12-en-test/STS.gs.MSRvid.txt").unlink()
    (root / "downstream/SICK/SICK_test_annotated.txt").unlink()
    assert "STS12" not in by_set(STS().run(perfect_subject(data_root=root)))
    warning = " ".join(capsys.readouterr().err.split())
    assert (
        "STS12 lacks STS/STS12-en-test/STS.gs.MSRvid.txt" in warning
        and "SICKR lacks SICK/SICK_test_annotated.txt" in warning
    )
    with pytest.raises(DataError, match=r"STS12 lacks STS/STS12-en-test/STS\.gs\.MSRvid\.txt"):
        STS(data=str(root), sets=["STS12"]).run(perfect_subject())


def test_the_error_for_a_folder_without_the_data_names_the_expected_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no STS or SICK"):
        STS(data=str(tmp_path)).run(perfect_subject())
    with pytest.raises(DataError, match="--data ROOT"):
        STS().run(perfect_subject())


def test_an_unknown_set_names_the_closest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'STSB'"):
        STS(sets=["STS-B"])


def test_a_score_that_is_not_a_number_is_reported_with_its_line(tmp_path: Path) -> None:
    root = write_sts(tmp_path)
    file = root / "downstream/STS/STS13-en-test/STS.gs.OnWN.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "four", *lines[2:]]) + "\n")
    with pytest.raises(
        DataError, match=r"STS\.gs\.OnWN\.txt:2: the score should be a number and is 'four'"
    ):
        STS(data=str(root), sets=["STS13"]).run(perfect_subject())
    file.write_text("\n".join(lines[:5]) + "\n")
    with pytest.raises(DataError, match="has 5 lines for 12 pairs"):
        STS(data=str(root), sets=["STS13"]).run(perfect_subject())


def test_a_single_judged_pair_is_refused_and_a_constant_score_is_null(tmp_path: Path) -> None:
    root = write_sts(tmp_path)
    file = root / "downstream/STS/STSBenchmark/sts-dev.csv"
    line = file.read_text().splitlines()[0]
    file.write_text(line + "\n")
    with pytest.raises(DataError, match="has 1 judged pairs"):
        STS(data=str(root), sets=["STSB-dev"]).run(perfect_subject())
    file.write_text(f"{line}\n{line}\n")
    assert STS(data=str(root), sets=["STSB-dev"]).run(perfect_subject())[0].to_json()[
        "metrics"
    ] == {"spearman": None, "pearson": None}


def test_batch_size_moves_no_score(root: Path) -> None:
    few, many = random_subject(), random_subject()
    few.batch_size, many.batch_size = 3, 1000
    suite = STS(data=str(root))
    assert [result.metrics for result in suite.run(few)] == [
        result.metrics for result in suite.run(many)
    ]


def test_blank_lines_at_the_end_are_not_pairs_and_a_carriage_return_does_not_end_one(
    tmp_path: Path,
) -> None:
    root = write_sts(tmp_path)
    whole = by_set(STS(data=str(root), sets=["STS13"]).run(perfect_subject()))["STS13"]
    folder = root / "downstream/STS/STS13-en-test"
    (folder / "STS.gs.FNWN.txt").write_bytes((folder / "STS.gs.FNWN.txt").read_bytes() + b"\n\n")
    inputs = folder / "STS.input.OnWN.txt"
    inputs.write_bytes(inputs.read_bytes().replace(b"left STS13", b"left\rSTS13") + b"\n")
    again = by_set(STS(data=str(root), sets=["STS13"]).run(perfect_subject()))["STS13"]
    assert (again.metrics, again.num_items, again.num_skipped) == (whole.metrics, 35, 1)


def test_a_score_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    root = write_sts(tmp_path)
    file = root / "downstream/STS/STS13-en-test/STS.gs.OnWN.txt"
    file.write_text("nan\n" * 12)
    with pytest.raises(DataError, match=r"OnWN\.txt:1: the score should be a number and is 'nan'"):
        STS(data=str(root), sets=["STS13"]).run(perfect_subject())


def test_a_vector_of_infinities_counts_as_a_cosine_of_nothing() -> None:
    first = np.array([[np.inf, 1.0], [1.0, 0.0]])
    assert pair_similarity(first, np.array([[np.inf, 1.0], [1.0, 0.0]])).tolist() == [0.0, 1.0]


def test_a_similarity_without_a_correlation_is_not_the_best_one(tmp_path: Path) -> None:
    def lengths(text: str) -> torch.Tensor:
        gold = re.search(r"gold(\S+)", text)
        # All in one direction: the cosine is constant, the distance is not.
        return torch.tensor([8.0 - float(gold[1]) if gold else 1.0, 0.0])

    subject = Subject(None, FakeTower("text", lengths, 2))  # type: ignore[arg-type]
    root = write_sts(tmp_path)
    assert STS(data=str(root), sets=["STSB"], similarity="max").run(subject)[0].metrics[
        "spearman"
    ] == pytest.approx(1)
    assert math.isnan(STS(data=str(root), sets=["STSB"]).run(subject)[0].metrics["spearman"])
