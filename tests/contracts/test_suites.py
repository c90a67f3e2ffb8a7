"""What every suite of the catalogue keeps to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.suite_cases import SUITE_CASES
from vlkd_cli import catalog
from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import build_suite, run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec

SUITES = catalog.names("suite")


def spec(name: str, keys: dict) -> EvalSpec:
    return EvalSpec.model_validate({"suite": name, **keys})


def test_every_suite_of_the_catalogue_has_a_case() -> None:
    assert len(SUITES) >= 15
    assert set(SUITE_CASES) == set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_perfect_towers_score_one_and_random_ones_chance(name: str, tmp_path: Path) -> None:
    case = SUITE_CASES[name](tmp_path)
    best = run_suites(case.perfect, [spec(name, case.keys)], folder=tmp_path / "results")
    worst = run_suites(case.random, [spec(name, case.keys)])
    assert best and len(best) == len(worst)
    for result in best:
        assert result.metrics[result.headline] == pytest.approx(case.best, abs=1e-6)
    for result in worst:
        assert result.metrics[result.headline] == pytest.approx(
            result.chance[result.headline], abs=case.error
        )
    check_results(best, tmp_path / "results")


def check_results(results: list[Result], folder: Path) -> None:
    """Results say where they come from, and lie in the folder as JSON."""
    for result in results:
        assert (
            result.dataset and result.split and result.protocol and result.hashes and result.version
        )
        assert result.num_items > 0
        assert set(result.chance) <= set(result.metrics)
    written = sorted(folder.glob("*.json"))
    assert len(written) == len(results)
    assert all(json.loads(path.read_text())["suite"] for path in written)


@pytest.mark.parametrize("name", SUITES)
def test_a_missing_tower_is_named(name: str, tmp_path: Path) -> None:
    case = SUITE_CASES[name](tmp_path)
    with pytest.raises(RecipeError, match="there is none for (image|text)"):
        build_suite(spec(name, case.keys), Subject(None, None))


@pytest.mark.parametrize("name", SUITES)
def test_a_misspelt_key_is_an_error(name: str) -> None:
    with pytest.raises(RecipeError, match="mispelt"):
        build_suite(spec(name, {"mispelt": 1}), Subject(None, None))
