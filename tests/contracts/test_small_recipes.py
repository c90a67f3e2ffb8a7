"""Recipes that were not run at their size have a small twin that was, and the figures agree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.shipped import shipped_recipe, shipped_recipes
from vlkd_cli.reports.csv import read_metrics

SMALL = sorted(name for name in shipped_recipes() if name.startswith("small/"))
QUICK = ("small/lit_mobilenet",)
LARGE = sorted(
    name
    for name in shipped_recipes()
    # Recipes of self-supervised learning cite the figures of their papers.
    if not name.startswith(("small/", "ssl/"))
)
FIGURE = re.compile(r"\d\.\d{3} ± \d\.\d{3}")
TINY = [
    "data.num_samples=100",
    "train.steps=2",
    "train.batch_size=50",
    "evals=[{suite: retrieval, data: {reader: shapes, split: test, num_samples: 20}}]",
]


def header_of(name: str) -> dict[str, str]:
    """The entries of a recipe's header, by the word that each begins with."""
    entries: dict[str, str] = {}
    word = "Title"
    for line in shipped_recipe(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        entry = re.fullmatch(r"# ([A-Z]\w+) {2,}(.*)", line)
        word, text = entry.groups() if entry else (word, line.lstrip("# "))
        entries[word] = f"{entries.get(word, '')}\n{text}".strip()
    return entries


def commands_of(name: str) -> list[tuple[str, list[str]]]:
    """Recipe and `--set` options of every command in a header."""
    header = header_of(name)
    lines = [
        line
        for word in ("Before", "Command", "Against")
        for line in header.get(word, "").split("\n")
    ]
    commands = [shlex.split(line) for line in lines if line]
    return [
        (words[2], [words[n + 1] for n, word in enumerate(words) if word == "--set"])
        for words in commands
    ]


def test_there_are_small_recipes():
    assert len(SMALL) >= 13


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_was_measured_or_has_a_small_twin_whose_figures_it_names(name):
    header = header_of(name)
    if "Measured" in header:
        return
    twin = f"small/{Path(name).stem}"
    assert f"vlkd train {twin}" in header["Small"]
    figures = FIGURE.findall(header["Small"])
    assert figures
    assert set(figures) <= set(FIGURE.findall(header_of(twin)["Measured"]))


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_gives_its_commands_its_cost_and_figures_over_three_seeds(name):
    header = header_of(name)
    assert header["Title"] and header["Shows"] and header["Data"]
    assert header["Command"] == f"vlkd train {name}"
    assert re.search(r"\d+ s of CPU time", header["Hardware"])
    assert "seeds 0, 1 and 2" in header["Measured"] and "chance" in header["Measured"]
    assert len(FIGURE.findall(header["Measured"])) >= 2


@pytest.mark.parametrize("name", SMALL)
def test_the_figures_of_a_header_are_those_of_the_page(name):
    page = (ROOT / "docs" / "small_recipes.md").read_text(encoding="utf-8")
    assert set(FIGURE.findall(header_of(name)["Measured"])) <= set(FIGURE.findall(page))
    assert f"`{name.removeprefix('small/')}" in page


@pytest.mark.parametrize("name", SMALL)
def test_the_commands_of_a_header_pass_the_check(name):
    for recipe, overrides in commands_of(name):
        load_recipe(recipe, overrides, to_train=True)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_needs_no_data_and_reports_on_pictures_that_it_does_not_train_on(name):
    recipe = load_recipe(name)
    assert recipe.data is not None and recipe.data.reader == "shapes"
    assert [entry.keys["data"]["split"] for entry in recipe.evals] == ["test"] * len(recipe.evals)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SMALL],
)
def test_the_commands_of_a_header_train_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    before = [shlex.split(line) for line in header_of(name).get("Before", "").splitlines()]
    runs = [words[words.index("--run") + 1] for words in before]
    for number, (recipe, overrides) in enumerate(commands_of(name)):
        run = tmp_path / (runs[number] if number < len(runs) else f"run-{number}")
        request = TrainRequest(
            recipe=recipe, run=run, quiet=True, overrides=[*overrides, *_tiny(recipe)]
        )
        assert start_training(request) == 0
        assert [step for step, _ in read_metrics(run)["train/loss"]][-1] == 2


def _tiny(recipe: str) -> list[str]:
    whole: Recipe = load_recipe(recipe)
    evaluations = TINY[-1]
    if any(entry.tower for entry in whole.evals):
        evaluations = evaluations.replace("retrieval,", "retrieval, tower: image,")
    return [*TINY[:-1], evaluations]
