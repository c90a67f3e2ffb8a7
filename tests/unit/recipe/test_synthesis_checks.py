"""The section `synthesis` of a recipe, judged without data and without torch."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.snapshot import recipe_to_yaml

TOWERS = {
    "text": {"builder": "sbert", "model": "x"},
    "image": {"builder": "torchvision", "model": "resnet18"},
}
SECTION: dict[str, Any] = {
    "data": {"reader": "passages", "path": "corpus"},
    "miners": ["text", "bm25"],
    "scorers": ["bm25"],
}


def parsed(towers: dict[str, Any] = TOWERS, **keys: Any) -> Recipe:
    section = {key: value for key, value in {**SECTION, **keys}.items() if value is not None}
    text = yaml.safe_dump({"towers": towers, "synthesis": section}, sort_keys=False)
    return parse_recipe(text, "r.yaml")


def test_scorers_are_names_models_or_mappings() -> None:
    scorers = ["bm25", "crossencoder-base-en", {"like": "crossencoder-base-en", "max_length": 9}]
    spec = parsed(scorers=[*scorers, {"name": "tower", "weight": 0.5}]).synthesis
    assert spec is not None
    model = "cross-encoder/ms-marco-MiniLM-L6-v2"
    assert [(each.name, each.keys) for each in spec.scorers] == [
        ("bm25", {}),
        ("cross_encoder", {"model": model}),
        ("cross_encoder", {"model": model, "max_length": 9}),
        ("tower", {}),
    ]
    assert (spec.relations, spec.depth, spec.sampling, spec.positive, spec.seed) == (
        10,
        50,
        "random",
        "first",
        0,
    )
    assert spec.scorers[3].weight == 0.5 and spec.scorers[3].standardize is None


def test_the_section_is_in_the_snapshot() -> None:
    recipe = parsed(relations=7)
    assert parse_recipe(recipe_to_yaml(recipe), "again.yaml").synthesis == recipe.synthesis


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"miners": ["txt"]}, r"miners\[0\]: no text tower 'txt'. Did you mean 'text'\?"),
        ({"miners": ["image"]}, "tower 'image' reads images, and passages are texts"),
        ({"miners": ["bm25", "bm25"]}, r"miners\[1\]: 'bm25' is listed twice"),
        ({"miners": []}, "synthesis.miners"),
        ({"scorers": []}, "synthesis.scorers"),
        ({"scorers": ["bm52"]}, r"scorers\[0\].*unknown scorer 'bm52'. Did you mean 'bm25'"),
        (
            {"scorers": [{"name": "bm25", "k2": 1}]},
            r"\.k2: unknown key. Accepted: k1, b",
        ),
        ({"scorers": ["crossencoder-base"]}, "Did you mean 'crossencoder-base-en'"),
        ({"scorers": ["cross_encodr"]}, "unknown scorer .* Did you mean 'cross_encoder'"),
        ({"scorers": ["resnet-base"]}, "'resnet-base' is not a scorer. Models that score pairs"),
        ({"scorers": [{"name": "tower", "tower": "image"}]}, "tower 'image' reads images"),
        ({"scorers": [{"name": "bm25", "weight": 0}]}, "weight: expected a number above 0"),
        ({"data": {"reader": "csv", "path": "a.csv"}}, "are read by reader 'passages'"),
        ({"data": {"reader": "passages"}}, "key 'path' is missing"),
        ({"data": None}, "key 'data' is missing from the synthesis"),
        (
            {"data": {"reader": "passages", "path": "c", "relations": "r.tsv"}},
            "synthesis.data.relations: has no effect",
        ),
        (
            {"data": {"reader": "passages", "path": "c", "split": "dev"}},
            "synthesis.data.split: has no effect with `positive: first`",
        ),
        ({"relations": 1}, "relations: expected an integer of at least 2"),
        ({"relations": 30, "depth": 10}, "30 passages of each query, but the miners find 20"),
        ({"seed": 3, "sampling": "top"}, "seed: has no effect with `sampling: top`"),
        (
            {"similarity": "dot", "miners": ["bm25"]},
            "similarity: has no effect: no tower mines or scores",
        ),
        ({"sampling": "bottom"}, "sampling: expected"),
        ({"depht": 3}, r"depht: unknown key. Did you mean 'depth'"),
    ],
)
def test_mistakes_are_one_line_with_their_place(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as reported:
        parsed(**keys)
    assert str(reported.value).startswith("r.yaml:") and "\n" not in str(reported.value)


def test_a_tower_scorer_names_its_tower_where_there_are_several() -> None:
    several = {"text": TOWERS["text"], "other_text": TOWERS["text"]}
    with pytest.raises(RecipeError, match="which tower scores.*Text towers: text, other_text"):
        parsed(several, scorers=["tower"])
    parsed(several, scorers=[{"name": "tower", "tower": "other_text"}])
    with pytest.raises(RecipeError, match="is a miner and a tower of this recipe"):
        parsed({"bm25": {**TOWERS["text"], "modality": "text"}}, miners=["bm25"])
