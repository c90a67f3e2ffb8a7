"""What `vlkd eval` means by its target and its suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlkd_cli.app import main
from vlkd_cli.engine.launching.start_evaluation import _shares, find_target, suite_specs
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.schema import EvalSpec, Recipe, TowerSpec


def test_towers_can_be_described_by_overrides_alone(tmp_path: Path) -> None:
    overrides = [
        "towers.text.builder=sbert",
        "towers.text.model=vectors.txt",
        "towers.image.builder=torchvision",
        "towers.image.model=resnet18",
    ]
    recipe, folder, checkpoint = find_target(None, overrides, tmp_path)
    assert {name: tower.builder for name, tower in recipe.towers.items()} == {
        "text": "sbert",
        "image": "torchvision",
    }
    assert (folder.path, checkpoint) == (tmp_path / "eval", None)
    with pytest.raises(RecipeError, match="towers"):
        find_target(None, ["towers.text.bilder=sbert"], tmp_path)


def test_suites_of_text_towers_take_their_keys_from_with() -> None:
    recipe = Recipe(towers={"text": TowerSpec(builder="sbert", model="vectors.txt")})
    specs = suite_specs(recipe, ["sts", "word_similarity"], ["sets=[STS12]", "oov=zero"])
    assert [(spec.suite, spec.keys) for spec in specs] == [
        ("sts", {"sets": ["STS12"]}),
        ("word_similarity", {"oov": "zero"}),
    ]


@pytest.mark.parametrize(
    ("suite", "settings", "start"),
    [
        ("retrival", [], "--suite: unknown suite 'retrival'. Did you mean 'retrieval'?"),
        (
            "retrieval",
            ["data.reader=shapes", "data.split=tset"],
            "--with data.split=tset: data.split: expected 'train', 'val' or 'test', got 'tset'.",
        ),
    ],
)
def test_mistakes_are_reported_in_the_words_that_were_typed(
    suite: str, settings: list[str], start: str
) -> None:
    recipe = Recipe(towers={"text": TowerSpec(builder="sbert", model="vectors.txt")})
    with pytest.raises(RecipeError) as caught:
        suite_specs(recipe, [suite], settings)
    assert str(caught.value).startswith(start)


def specs_of(suites: list[str], settings: list[str], **recipe: Any) -> list[EvalSpec]:
    towers = {"text": TowerSpec(builder="sbert", model="vectors.txt")}
    return suite_specs(Recipe(towers=towers, **recipe), suites, settings)


def lines_of(suites: list[str], settings: list[str], **recipe: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        specs_of(suites, settings, **recipe)
    return str(caught.value).splitlines()


def test_a_named_data_set_takes_further_keys() -> None:
    (spec,) = specs_of(["knn"], ["data=cifar10", "data.split=test", "k=[5]"])
    assert spec.keys == {"data": {"dataset": "cifar10", "split": "test"}, "k": [5]}
    (spec,) = specs_of(["knn"], ["data=cifar10"])
    assert spec.keys == {"data": "cifar10"}
    listed = [EvalSpec(suite="knn", data="cifar10")]
    assert specs_of([], ["data.split=val"], evals=listed)[0].keys["data"] == {
        "dataset": "cifar10",
        "split": "val",
    }


def test_problems_of_all_suites_are_reported_once_in_the_words_that_were_typed() -> None:
    assert lines_of(["knn", "zero_shot"], ["data=cifar10", "data.spilt=test"]) == [
        "--with data.spilt=test: data.spilt: unknown key. Did you mean 'split'? Accepted: dataset,"
        " split, download, templates, classes, name."
    ]


@pytest.mark.parametrize(
    ("suites", "settings", "message"),
    [
        (["knn"], ["data"], "--with data: write key=value, e.g. --with data.split=test."),
        (["knn"], ["date=x"], "--with date=x: knn takes no 'date'. Did you mean 'data'?"),
        (["os:getcwd"], [], "--suite: suite 'os:getcwd' is not a class."),
        (
            ["knn"],
            ["data={split: test}"],
            "--with data={split: test}: data: key 'reader' is missing.",
        ),
    ],
)
def test_mistakes_in_settings_end_in_one_line(
    suites: list[str], settings: list[str], message: str
) -> None:
    (line,) = lines_of(suites, settings)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("suite", "words", "message"),
    [
        ("knn", "--seeds 0,1", "--seeds 0,1: has no effect on knn. Leave it out; it is for"),
        ("knn", "--languages de", "--languages de: has no effect on knn. Leave it out; it is for"),
        ("few_shot", "--seeds 0,a", "--seeds 0,a: expected a list of integers or null, got [0, a]"),
        ("few_shot", "--seeds a", "--seeds a: expected a list of integers or null, got [a]"),
        ("elevater", "--mode linear", "--mode linear: expected 'zero_shot', 'linear_probe'"),
        ("retrieval", "--datasets a,b", "--datasets a,b: has no effect on retrieval. Leave it out"),
        ("retrieval", "--tasks MR", "--tasks MR: has no effect on retrieval."),
    ],
)
def test_options_that_stand_for_keys_are_refused_as_they_were_typed(
    suite: str, words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "--set towers.image.builder=timm --set towers.image.model=resnet10t"
    given = f"eval {recipe} --data {tmp_path} --suite {suite} {words} --runs {tmp_path}/runs"
    with pytest.raises(SystemExit) as left:
        main(given.split())
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error.replace("\n", " ") and "--with" not in error


def test_whole_towers_can_be_described_by_one_override(tmp_path: Path) -> None:
    text = "towers={text: {builder: sbert, model: a.txt}}"
    recipe, _, checkpoint = find_target(None, [text, "towers.text.model=b.txt"], tmp_path)
    assert recipe.towers["text"].keys == {"model": "b.txt"}
    assert checkpoint is None
    one = "towers.text={builder: sbert, model: a.txt}"
    assert list(find_target(None, [one], tmp_path)[0].towers) == ["text"]


IMAGE = {"image": TowerSpec(builder="timm", model="resnet10t")}
LABELED = {"reader": "classification", "path": "birds"}
LISTED = [EvalSpec(suite="zero_shot", data=LABELED)]


def test_a_suite_without_data_takes_the_evaluation_data_of_another(tmp_path: Path) -> None:
    recipe = Recipe(towers=IMAGE, evals=LISTED)
    assert suite_specs(recipe, ["knn"], [])[0].keys == {"data": LABELED}
    (spec,) = suite_specs(recipe, ["knn"], ["data.split=val"])
    assert spec.keys == {"data": {**LABELED, "split": "val"}}
    # Below a folder that is given, data sets are looked up instead.
    assert suite_specs(recipe, ["knn"], [], tmp_path)[0].keys == {}


def test_a_suite_without_any_data_is_refused() -> None:
    with pytest.raises(RecipeError, match="suite 'knn': no data is set"):
        suite_specs(Recipe(towers=IMAGE), ["knn"], [])


def test_a_data_folder_that_no_suite_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sentences").mkdir()
    recipe = Recipe(
        towers=IMAGE,
        evals=[*LISTED, EvalSpec(suite="sts", data=str(tmp_path / "sentences"))],
    )
    for suite, key in (("zero_shot", "data: {reader:"), ("sts", "data: '")):
        with pytest.raises(RecipeError, match=f"--data .* has no effect on suite '{suite}': ") as c:
            suite_specs(recipe, [suite], [], tmp_path)
        assert key in str(c.value) and "--with data=NAME" in str(c.value)
    assert suite_specs(recipe, ["zero_shot"], ["data=birds"], tmp_path)
    assert len(suite_specs(recipe, ["zero_shot", "knn"], [], tmp_path)) == 2


def test_name_and_tower_of_an_entry_are_set_like_its_keys() -> None:
    specs = suite_specs(Recipe(towers=IMAGE), ["knn"], ["data=birds", "tower=image", "name=near"])
    assert (specs[0].title, specs[0].tower) == ("near", "image")


@pytest.mark.parametrize("text", ["", ",", "0.5,,1", "half", "-0.1", "0,1.5", "nan", "inf"])
def test_weights_lie_between_start_and_end(text: str) -> None:
    assert _shares("0,0.25, 1") == (0, 0.25, 1)
    with pytest.raises(UserError, match=f"--wise-ft {text}: numbers from 0 to 1 separated by"):
        _shares(text)
    with pytest.raises(UserError, match="names a number twice"):
        _shares("0.5,0,0.50")
