"""The contract of every suite of the catalogue."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlkd_cli
from tests.support.fakes import COLORED
from tests.support.suite_cases import SUITE_CASES
from vlkd_cli import catalog
from vlkd_cli.checkpoint import Source
from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import build_suite, run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.params import module_file, signature_of
from vlkd_cli.recipe.schema import EvalSpec

SUITES = catalog.names("suite")
MODEL = Source(run="runs/first", file="runs/first/checkpoints/last.pt", step=12, averaged=True)


def spec(name: str, keys: dict) -> EvalSpec:
    return EvalSpec.model_validate({"suite": name, **keys})


def test_every_suite_of_the_catalogue_has_a_case() -> None:
    assert len(SUITES) >= 15
    assert set(SUITE_CASES) == set(SUITES)


# The libraries of mteb take twenty seconds to import.
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name == "mteb")) for name in SUITES]


@pytest.mark.parametrize("name", CASES)
def test_perfect_towers_score_one_and_random_ones_chance(name: str, tmp_path: Path) -> None:
    case = SUITE_CASES[name](tmp_path)
    perfect = replace(case.perfect, model=MODEL)
    best = run_suites(perfect, [spec(name, case.keys)], folder=tmp_path / "results")
    worst = run_suites(case.random, [spec(name, case.keys)])
    assert best and len(best) == len(worst)
    for result in best:
        assert result.metrics[result.primary_metric] == pytest.approx(case.best, abs=1e-6)
    for result in worst:
        assert result.metrics[result.primary_metric] == pytest.approx(
            result.chance[result.primary_metric] if case.chance is None else case.chance,
            abs=case.error,
        )
    check_results(best, tmp_path / "results")
    suite = build_suite(spec(name, case.keys), perfect)
    measures = suite.measures(suite.open(perfect))
    assert measures is not None
    assert {result.dataset for result in best} <= set(measures.datasets)
    assert {metric for result in best for metric in result.metrics} <= set(measures.metrics)


def check_results(results: list[Result], folder: Path) -> None:
    """Results say what was measured, on which data and how, and lie in the folder as JSON."""
    for result in results:
        suite = catalog.load("suite", result.suite)
        assert result.name == result.suite
        assert result.dataset and result.split and result.protocol and result.hashes
        assert result.num_items > 0
        assert result.primary_metric in result.metrics and set(result.chance) <= set(result.metrics)
        assert result.primary_metric in result.chance or result.suite == "mteb"
        assert result.precision == "fp32" and result.version == vlkd_cli.__version__
        assert {"python", "numpy", "torch", *suite.libraries} == set(result.libraries)
        assert (result.num_classes or 0) >= (2 if "label" in suite.needs else 0)
        assert list(result.model.values()) == list(MODEL)
        assert suite.modalities <= set(result.towers)
        assert all(set(facts) == {"name", "weights"} for facts in result.towers.values())
        declared = {key.name for key in signature_of("suite", result.suite).keys}
        assert declared & suite.data_keys == set(result.data)
        assert declared - suite.data_keys - suite.report_keys <= set(result.settings)
    written = sorted(folder.glob("*.json"))
    assert len(written) == len(results)
    assert all(json.loads(path.read_text())["suite"] for path in written)


@pytest.mark.parametrize("name", SUITES)
def test_no_suite_builds_its_results_by_hand(name: str) -> None:
    path = module_file(catalog.locate("suite", name)[0])
    assert path is not None and "self.result(" in path.read_text()
    assert not re.search(r"\bResult\(", path.read_text())


def test_a_result_file_is_replaced_by_the_same_measurement_only(tmp_path: Path) -> None:
    case = SUITE_CASES["knn"](tmp_path)

    def names(subject: Subject, **keys: Any) -> set[str]:
        run_suites(subject, [spec("knn", {**case.keys, **keys})], folder=tmp_path / "results")
        return {path.name for path in (tmp_path / "results").glob("*.json")}

    assert len(names(case.perfect)) == 1
    assert len(names(case.perfect)) == 1
    assert len(names(case.random)) == 2
    assert len(names(case.perfect, temperature=0.1)) == 3
    assert len(names(replace(case.perfect, precision="bf16"))) == 4
    assert len(names(case.perfect, data={"reader": COLORED, "num_samples": 400})) == 5


def test_an_entry_that_has_a_name_names_its_results(tmp_path: Path) -> None:
    case = SUITE_CASES["knn"](tmp_path)
    entries = [spec("knn", {**case.keys, "name": "near"}), spec("knn", case.keys)]
    results = run_suites(case.perfect, [*entries, entries[0]], folder=tmp_path)
    assert [(result.name, result.suite) for result in results] == [
        ("near", "knn"),
        ("knn", "knn"),
        ("near", "knn"),
    ]
    first, _, again = (result.dataset for result in results)
    assert again == f"{first}_2"
    assert len(list(tmp_path.glob("near-*.json"))) == 2


@pytest.mark.parametrize("name", SUITES)
def test_a_missing_tower_is_named(name: str, tmp_path: Path) -> None:
    case = SUITE_CASES[name](tmp_path)
    with pytest.raises(RecipeError, match="there is none for (image|text)"):
        build_suite(spec(name, case.keys), Subject(None, None))


@pytest.mark.parametrize("name", SUITES)
def test_a_misspelled_key_is_an_error(name: str) -> None:
    with pytest.raises(RecipeError, match="misspelled"):
        build_suite(spec(name, {"misspelled": 1}), Subject(None, None))


def test_an_entry_measures_the_tower_that_it_names(tmp_path: Path) -> None:
    case = SUITE_CASES["knn"](tmp_path)
    towers = {"image": case.random.image, "image_key": case.perfect.image}
    subject = replace(case.random, towers=towers)
    plain, named = run_suites(
        subject, [spec("knn", case.keys), spec("knn", {**case.keys, "tower": "image_key"})]
    )
    assert named.metrics[named.primary_metric] == 1 > plain.metrics[plain.primary_metric]
    assert (plain.towers["image"]["name"], named.towers["image"]["name"]) == ("image", "image_key")
    with pytest.raises(RecipeError, match="no tower 'image_kye'. Did you mean 'image_key'"):
        run_suites(subject, [spec("knn", {**case.keys, "tower": "image_kye"})])
