"""What `vlkd eval` means by its target and its suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_cli.engine.launching.start_evaluation import find_target, suite_specs
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import Recipe, TowerSpec


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
def test_mistakes_are_told_in_the_words_that_were_typed(
    suite: str, settings: list[str], start: str
) -> None:
    recipe = Recipe(towers={"text": TowerSpec(builder="sbert", model="vectors.txt")})
    with pytest.raises(RecipeError) as caught:
        suite_specs(recipe, [suite], settings)
    assert str(caught.value).startswith(start)
