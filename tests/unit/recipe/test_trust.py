"""What a recipe of somebody else may not name."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support.recipes import SMALL, problems
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.recipe.load import load_recipe, parse_recipe, recipe_of_checkpoint
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.snapshot import recipe_to_json
from vlkd_cli.recipe.trust import check_foreign, check_foreign_overrides

HEAD = {"name": "subprocess:Popen", "args": "touch x", "shell": True}
HOSTILE: dict[str, Any] = {
    "towers.a.builder": {"towers": {"a": {"builder": "evil:Builder"}}},
    "towers.a.head.name": {"towers": {"a": {"builder": "timm", "head": HEAD}}},
    "towers.a.heads.b.name": {"towers": {"a": {"heads": {"b": HEAD}}}},
    "towers.a.heads.b": {"towers": {"a": {"heads": {"b": "evil:Head"}}}},
    "towers.a.prompt.name": {"towers": {"a": {"prompt": HEAD}}},
    "towers.a.adapter": {"towers": {"a": {"adapter": "evil:Adapter"}}},
    "towers.a.trust": {"towers": {"a": {"builder": "huggingface", "trust": True}}},
    "towers.a.config.deep[0].trust": {"towers": {"a": {"config": {"deep": [{"trust": "yes"}]}}}},
    "distillers[0].name": {"distillers": [{"name": "os:system"}]},
    "data.reader": {"data": {"reader": "evil:Reader"}},
    "data.readers[1].reader": {"data": {"readers": [{"reader": "csv"}, {"reader": "e:R"}]}},
    "data.augment.name": {"data": {"augment": {"name": "evil:Augment"}}},
    "data.views.b": {"data": {"views": {"b": "evil:Augment"}}},
    "data.path": {"data": {"reader": "webdataset", "path": "pipe:touch x"}},
    "data.path[1]": {"data": {"reader": "webdataset", "path": ["a.tar", " PIPE:touch x"]}},
    "data.readers[0].path": {"data": {"readers": [{"path": "{p,q}ipe:touch x"}]}},
    "data.split": {"data": {"path": "pi{split}", "split": "pe:touch x"}},
    "evals[0].suite": {"evals": [{"suite": "evil:Suite"}]},
    "evals[0].train_data.readers[0].path": {
        "evals": [{"suite": "knn", "train_data": {"readers": [{"path": "pipe:x"}]}}]
    },
    "evals[0].split": {"evals": [{"suite": "knn", "split": "pe:touch x"}]},
    "reports[0]": {"reports": ["evil:Sink"]},
    "reports[0].name": {"reports": [{"name": "evil:Sink"}]},
    "optimizer.name": {"optimizer": {"name": "evil:Optimizer"}},
}


@pytest.mark.parametrize("place", HOSTILE)
def test_code_is_found_wherever_it_is_named(place):
    from vlkd_cli.recipe.messages import written

    found = check_foreign(HOSTILE[place], "Do not.")
    assert [written(problem.path) for problem in found] == [place]
    assert found[0].text.endswith(" Do not.")


@pytest.mark.parametrize(
    "override",
    [
        "towers.a.head.name=subprocess:Popen",
        "towers.a={builder: huggingface, trust: true}",
        "towers.a.trust=yes",
        "reports[0]=evil:Sink",
        "data.path=pipe:touch x",
    ],
)
def test_changes_that_a_file_holds_are_looked_at_like_its_recipe(override):
    (problem,) = check_foreign_overrides(["train.steps=1", override], "Do not.")
    assert problem.text.endswith(" Do not.")


def test_catalogue_names_and_paths_are_not_code():
    fine = parse_recipe(
        SMALL.replace(
            "{reader: shapes}",
            "{reader: webdataset, path: ['s3://b/{00..10}.tar', '/a:b/c.tar'], caption: 'x'}",
        )
        + "evals: [{suite: zero_shot, data: {reader: shapes}, templates: ['a photo: {}']}]\n",
        "r.yaml",
        foreign=True,
    )
    assert isinstance(fine, Recipe)
    assert check_foreign(fine.model_dump(), "") == []


def test_a_message_names_file_line_key_and_remedy(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(SMALL.replace("model: resnet18", "model: resnet18, trust: true"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, foreign=True)
    assert str(caught.value) == (
        f"{file}:2: towers.image.trust: lets a model run its author's code."
        " Add --trust if you trust who made it."
    )


def test_the_users_own_overrides_may_name_anything():
    with pytest.raises(RecipeError, match="no module 'no_such_package'"):
        parse_recipe(SMALL, "r.yaml", ["distillers=[{name: 'no_such_package:X'}]"], foreign=True)


def test_a_checkpoints_recipe_is_foreign_unless_it_is_trusted():
    text = json.dumps(HOSTILE["distillers[0].name"])
    with pytest.raises(RecipeError, match=r"x\.pt: distillers\[0\]\.name: 'os:system' names code"):
        recipe_of_checkpoint(text, "x.pt")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ud800"])
def test_a_damaged_recipe_in_a_checkpoint_is_one_line(text):
    with pytest.raises(CheckpointError, match=r"^x\.pt: its recipe is damaged"):
        recipe_of_checkpoint(text, "x.pt")


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """A package that notes when it is imported, with a right class, a wrong one and a function."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "noisy_package.py").write_text(
        "from vlkd_cli.distillers.infonce import InfoNCE\n"
        "class Fine(InfoNCE): pass\n"
        "class Other: pass\n"
        "def function(*_, **__): pass\n"
    )
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('on\\nload')\n")
    yield
    for name in ("noisy_package", "broken_package"):
        sys.modules.pop(name, None)


def with_distiller(name: str, more: str = "") -> list[str]:
    return problems(SMALL.replace("{name: infonce}", f"{{name: '{name}'}}") + more)


@pytest.mark.parametrize(
    "more",
    ["trian: {epochs: 1}\n", "train: {epochs: x}\n", "schedule: {name: constant, end_factor: 1}\n"],
)
def test_another_packages_code_is_imported_only_when_the_rest_is_right(third_party, more):
    assert len(with_distiller("noisy_package:Fine", more)) == 1
    assert "noisy_package" not in sys.modules
    assert with_distiller("noisy_package:Fine") == []
    assert "noisy_package" in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("noisy_package:function", "is not a class. Name a class, module:Class."),
        (
            "noisy_package:Other",
            "is not a distiller: derive the class from vlkd_cli.distillers.distiller.Distiller.",
        ),
        ("noisy_package:Nobody", "noisy_package has no 'Nobody'."),
        ("subprocess:getoutput", "is not a class. Name a class, module:Class."),
        (
            "broken_package:X",
            "importing broken_package failed (RuntimeError: on load). Try"
            " `python -c 'import broken_package'`.",
        ),
        ("not a module:X", "no module 'not a module'. Install the package it lives in."),
        (":X", "write module:Class."),
        ("..:X", "write module:Class."),
        ("a:", "write module:Class."),
    ],
)
def test_a_class_that_is_not_a_component_ends_in_one_line(third_party, name, message):
    (line,) = with_distiller(name)
    assert line.startswith("r.yaml:5: distillers[0].name: distiller ")
    assert line.endswith(message)


def test_a_third_partys_keys_are_checked(third_party):
    (line,) = problems(
        SMALL.replace("{name: infonce}", "{name: 'noisy_package:Fine', max_logit_scal: 3}")
    )
    assert "distillers[0].max_logit_scal: unknown key. Did you mean 'max_logit_scale'?" in line


def test_a_variable_in_a_path_is_not_a_command_unless_its_value_is(monkeypatch):
    monkeypatch.delenv("VLKD_SOME_DATA", raising=False)
    recipe = json.loads(recipe_to_json(parse_recipe(SMALL, "r.yaml")))

    def opened(path: str) -> object:
        data = {"reader": "webdataset", "path": path, "samples_per_epoch": 64}
        return recipe_of_checkpoint(json.dumps(recipe | {"data": data}), "last.pt")

    assert isinstance(opened("${VLKD_SOME_DATA:-data}/train.tar"), Recipe)
    with pytest.raises(RecipeError, match="data.path: .* runs a command"):
        opened("${VLKD_SOME_DATA:-pipe:touch x}")
    monkeypatch.setenv("VLKD_SOME_DATA", "pipe:touch x")
    with pytest.raises(RecipeError, match="data.path: .* runs a command"):
        opened("${VLKD_SOME_DATA:-data}")
