"""`vlkd recipes smoke`: recipes tried on rendered shapes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from typer.testing import CliRunner

from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe, train, write_recipe
from vlkd_cli.app import build_app
from vlkd_cli.engine.launching.smoke import reduced, smoke_test
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.reports.csv import read_metrics

TABLE = {"reader": "csv", "path": "absent/pairs.csv", "image_root": "absent"}


def recipe_of_users(folder: Path, **sections: object) -> str:
    """A tiny recipe whose data are not at hand."""
    return write_recipe(folder, {**tiny_recipe(), "data": TABLE, **sections})


def test_a_right_recipe_is_trained_two_steps_without_its_data(tmp_path):
    outcome = smoke_test(recipe_of_users(tmp_path))
    data = {"reader": "shapes", "num_samples": 8, "workers": 0}
    by_hand = {**tiny_recipe(train={"epochs": 1, "batch_size": 4}), "data": data}
    loss = read_metrics(train(tmp_path, by_hand))["train/loss"][-1][1]
    assert outcome.text == f"{tmp_path / 'tiny.yaml'}: fine, 2 steps, loss {loss:.4g}"
    assert not outcome.failed


def test_nothing_is_left_and_nothing_else_is_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    recipe = recipe_of_users(tmp_path)
    monkeypatch.chdir(tmp_path)
    smoke_test(recipe)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["tiny.yaml"]
    assert capfd.readouterr().out == ""


def test_features_are_cached_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    towers = {"image": {**IMAGE, "train": "none", "cache": True}, "text": TEXT}
    data = {**TABLE, "augment": {"name": "none"}}
    outcome = smoke_test(recipe_of_users(tmp_path, towers=towers, data=data))
    assert "fine, 2 steps" in outcome.text
    assert not list(tmp_path.rglob("train_features"))


def test_towers_views_and_optimizer_are_the_recipes_and_the_rest_is_small(tmp_path):
    data = {**TABLE, "augment": {"name": "none"}, "views": {"second": None}, "workers": 8}
    train = {"epochs": 90, "batch_size": 512, "accumulate": 8, "compile": True, "best": "knn.top1"}
    evals = [{"suite": "knn", "data": {"reader": "classification", "path": "absent"}}]
    distillers = [{"name": "infonce", "student": ["image", "image@second"], "teacher": "text"}]
    path = recipe_of_users(
        tmp_path,
        distillers=distillers,
        data=data,
        train=train,
        evals=evals,
        reports=["tensorboard"],
    )
    whole = load_recipe(path)
    small = reduced(whole)
    assert (small.towers, small.optimizer) == (whole.towers, whole.optimizer)
    assert small.data is not None and whole.data is not None
    assert (small.data.augment, small.data.views) == (whole.data.augment, whole.data.views)
    assert (small.data.reader, small.data.workers) == ("shapes", 0)
    settings = small.train
    assert (settings.steps, settings.batch_size, settings.accumulate) == (2, 4, 2)
    assert (settings.compile, settings.best, small.evals, small.reports) == (False, None, [], [])


def test_per_class_batches_hold_two_classes(tmp_path):
    data = {**TABLE, "label": "kind", "per_class": 5}
    small = reduced(load_recipe(recipe_of_users(tmp_path, data=data, train={"batch_size": 100})))
    assert small.data is not None
    assert (small.data.per_class, small.train.batch_size) == (5, 10)


def test_a_wrong_recipe_fails_with_the_lines_of_the_check(tmp_path):
    outcome = smoke_test(
        recipe_of_users(tmp_path, distillers=[{"name": "infonce", "logit_scal": 1}])
    )
    assert outcome.failed
    assert "distillers[0].logit_scal: unknown key. Did you mean 'logit_scale'?" in outcome.text


def test_a_recipe_that_fails_when_it_is_built_fails_in_one_line(tmp_path):
    towers = {"image": IMAGE, "text": {**TEXT, "head": {"name": "linear", "width": 24}}}
    outcome = smoke_test(recipe_of_users(tmp_path, towers=towers))
    assert outcome.failed
    assert outcome.text.startswith(f"{tmp_path / 'tiny.yaml'}: ")
    assert "24" in outcome.text and "16" in outcome.text
    assert "\n" not in outcome.text


def test_needs_that_shapes_do_not_meet_are_named_without_failing(tmp_path):
    data = {**TABLE, "texts": {"query": "question"}}
    distillers = [{"name": "infonce", "student": "image", "teacher": "text@query"}]
    outcome = smoke_test(recipe_of_users(tmp_path, data=data, distillers=distillers))
    assert not outcome.failed
    assert "checked, but not run, since rendered shapes are too little for it" in outcome.text
    assert "distillers[0].teacher: no view 'query'." in outcome.text


def test_missing_weights_are_named_with_the_way_around_them(tmp_path):
    image = {"builder": "torchvision", "model": "mobilenet_v3_small", "pretrained": "absent.pth"}
    towers = {"image": {**image, "head": {"name": "linear", "width": 16}}, "text": TEXT}
    recipe = recipe_of_users(tmp_path, towers=towers)
    outcome = smoke_test(recipe)
    assert outcome.failed
    assert "absent.pth" in outcome.text
    assert outcome.text.endswith("--no-weights.")
    assert reduced(load_recipe(recipe), weights=False).towers["image"].keys["pretrained"] is False
    assert smoke_test(recipe, weights=False).text.startswith(f"{recipe}: fine, 2 steps, loss ")


def test_variables_of_parts_that_are_replaced_need_not_be_readable(tmp_path, monkeypatch):
    monkeypatch.setenv("PAIRS", "absent/pairs.csv")
    monkeypatch.setenv("WIDTH", "16")
    data = {**TABLE, "path": "${PAIRS}"}
    assert not smoke_test(recipe_of_users(tmp_path, data=data)).failed


def test_the_command_prints_a_line_for_each_recipe_and_fails_where_one_does(tmp_path):
    right = recipe_of_users(tmp_path)
    wrong = write_recipe(tmp_path, {**tiny_recipe(), "distillers": [{"name": "infonse"}]}, "wrong")
    result = CliRunner().invoke(build_app(["recipes"]), ["recipes", "smoke", wrong, right])
    assert result.exit_code == 2
    assert result.stdout.startswith(f"{right}: fine, 2 steps, loss ")
    assert result.stderr.startswith(f"{wrong}:")


def test_too_few_samples_for_a_distiller_are_named_without_failing(tmp_path):
    distillers = [{"name": "protoclip", "num_prototypes": 500}]
    outcome = smoke_test(recipe_of_users(tmp_path, distillers=distillers))
    assert not outcome.failed
    assert "checked, but not run" in outcome.text and "500" in outcome.text
