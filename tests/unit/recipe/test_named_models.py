"""Towers by the name of a model: `image: resnet-base`, `{like: resnet-base, ...}`."""

from __future__ import annotations

import pytest

from tests.support.recipes import SMALL, problems, recipe
from vlkd_cli import catalog
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.named_models import TASKS, find_named_model, named_models, sections_of
from vlkd_cli.recipe.snapshot import recipe_to_yaml

NAMES = """bert-base-en bert-base-multi sbert-base-en distiluse-base-multi jina-embedding-t-en-v1
jina-embedding-s-en-v1 jina-embedding-b-en-v1 jina-embedding-l-en-v1 efficientnet-base
efficientnet-large resnet-base resnet-large clip-base-en clip-large-en clip-base-multi
pointnet-base crossencoder-base-en""".split()
USABLE = [name for name in NAMES if not named_models()[name].missing]
TOWERS = [(name, modality) for name in USABLE for modality in named_models()[name].towers]


def test_the_seventeen_names_are_there_each_with_a_task():
    assert list(named_models()) == NAMES
    assert {task for model in named_models().values() for task in model.tasks} == set(TASKS)


@pytest.mark.parametrize(("name", "modality"), TOWERS)
def test_every_usable_name_is_a_tower_that_passes_the_checks(name, modality):
    read = recipe(f"towers: {{{modality}: {name}}}\n")
    assert read.towers[modality].builder == sections_of(name)[modality]["builder"]
    assert read.towers[modality].keys["model"] == sections_of(name)[modality]["model"]


def test_own_keys_overlay_those_of_the_name_and_the_snapshot_holds_the_outcome():
    read = recipe(
        "towers:\n  image: {like: resnet-base, train: head, pretrained: false,"
        " head: {name: mlp, layers: 3, width: 8}}\n"
    )
    tower = read.towers["image"]
    assert tower.keys == {"model": "resnet50", "pretrained": False}
    assert (tower.builder, tower.train, tower.like) == ("torchvision", "head", None)
    assert "like" not in recipe_to_yaml(read)
    assert parse_recipe(recipe_to_yaml(read), "again").towers == read.towers


def test_nested_mappings_replace_those_of_the_name(monkeypatch):
    row = named_models()["resnet-base"]
    section = {**row.towers["image"], "config": {"width_per_group": 32, "groups": 2}}
    changed = {**named_models(), "resnet-base": row._replace(towers={"image": section})}
    monkeypatch.setattr("vlkd_cli.recipe.named_models.named_models", lambda: changed)
    read = recipe("towers: {image: {like: resnet-base, config: {groups: 4}}}\n")
    assert read.towers["image"].keys["config"] == {"groups": 4}


def test_set_changes_keys_of_a_tower_that_is_only_named_and_takes_names():
    read = parse_recipe(
        "towers: {image: resnet-base}\n", "r.yaml", ["towers.image.pretrained=false"]
    )
    assert read.towers["image"].keys == {"model": "resnet50", "pretrained": False}
    read = parse_recipe(SMALL, "r.yaml", ["towers.image=efficientnet-base"])
    assert read.towers["image"].keys["model"] == "efficientnet_b4"


def test_the_model_determines_the_modality_where_neither_name_nor_builder_does():
    read = recipe("towers: {student: bert-base-en}\n")
    assert read.towers["student"].modality == "text"


@pytest.mark.parametrize(
    ("tower", "line"),
    [
        ("image: resnet-bsae", "r.yaml:2: towers.image: no model is called 'resnet-bsae'. Did you"),
        (
            "image: {like: resnet-bsae}",
            "r.yaml:2: towers.image.like: no model is called 'resnet-bsae'. Did you mean"
            " 'resnet-base'?",
        ),
        ("image: {like: [a]}", "r.yaml:2: towers.image.like: `like:` takes the name of a model"),
        ("text: resnet-base", "r.yaml:2: towers.text: 'resnet-base' has image towers, no text"),
        ("a: clip-base-en", "r.yaml:2: towers.a: 'clip-base-en' has image and text towers. Say"),
        (
            "image: {like: resnet-base, builder: timm}",
            "r.yaml:2: towers.image: a tower has one source, but this one has like and builder.",
        ),
        ("text: crossencoder-base-en", "r.yaml:2: towers.text: 'crossencoder-base-en' "),
        (
            "image: {like: resnet-base, pretraind: true}",
            "r.yaml:2: towers.image.pretraind: unknown key. Did you mean 'pretrained'?",
        ),
    ],
)
def test_what_a_name_cannot_be_is_one_line(tower, line):
    lines = problems(f"towers:\n  {tower}\n")
    assert len(lines) == 1, lines
    assert lines[0].startswith(line)


def test_a_name_whose_builder_is_not_there_is_refused_in_one_line(monkeypatch):
    known = [name for name in catalog.names("builder") if name != "sbert"]
    monkeypatch.setattr(catalog, "names", lambda kind: known)
    with pytest.raises(RecipeError) as caught:
        find_named_model("sbert-base-en")
    assert str(caught.value) == (
        "'sbert-base-en' needs builder 'sbert', which this version of vlkd does not have. Choose"
        " another model."
    )
