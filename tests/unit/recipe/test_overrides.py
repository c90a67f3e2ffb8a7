"""`--set key=value`."""

from __future__ import annotations

import pytest

from tests.support.recipes import SMALL, problems, problems_with, recipe
from vlkd_cli.recipe.overrides import parse_path


def test_values_are_read_as_yaml():
    read = recipe(
        SMALL,
        "optimizer.lr=1e-3",
        "train.clip_grad_norm=null",
        "towers.image.train=[layer4.*]",
        "data={reader: shapes, seed: 4}",
    )
    assert (read.optimizer.lr, read.train.clip_grad_norm, read.towers["image"].train) == (
        1e-3,
        None,
        ["layer4.*"],
    )
    assert read.data.keys == {"seed": 4}


def test_entries_of_lists_are_reached_in_both_spellings():
    assert recipe(SMALL, "distillers[0].weight=2").distillers[0].weight == 2
    assert recipe(SMALL, "distillers.0.weight=2").distillers[0].weight == 2


def test_sections_that_the_recipe_leaves_out_come_to_be():
    read = recipe(
        SMALL,
        "schedule.warmup_steps=7",
        "towers.image.head.name=linear",
        "towers.image.head.width=8",
    )
    assert (read.schedule.warmup_steps, read.towers["image"].head.keys) == (7, {"width": 8})


def test_the_last_option_wins():
    assert recipe(SMALL, "train.epochs=2", "train.epochs=3").train.epochs == 3


def test_a_whole_tower_can_be_added():
    read = recipe(SMALL, "towers.old={follows: image}")
    assert read.towers["old"].follows == "image"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "optimizer.lrr=1",
            "unknown key. Did you mean 'lr'? Accepted: betas, eps, amsgrad, maximize, name, lr,"
            " weight_decay, decay_all, groups.",
        ),
        ("train.epochs=many", "expected an integer above 0, got the string 'many'."),
        ("towers.imag.model=x", "no tower 'imag'. Did you mean 'image'? Towers: image, text."),
        ("distillers[3].weight=1", "distillers is a list with 1 entry, counted from 0."),
        ("distillers.weight=1", "distillers is a list with 1 entry, counted from 0."),
        ("towers.image.model.x=1", "towers.image.model is 'resnet18' and has no keys."),
        ("train.epochs", "write key=value, e.g. --set optimizer.lr=1e-4."),
        ("=3", "write key=value, e.g. --set optimizer.lr=1e-4."),
        ("train..epochs=3", "write key=value, e.g. --set optimizer.lr=1e-4."),
        (
            "train.epochs=[1",
            "not valid YAML: expected ',' or ']', but got '<stream end>',"
            " while parsing a flow sequence.",
        ),
        (
            "optimzer.lr=1",
            "optimzer: unknown key. Did you mean 'optimizer'? Accepted: towers, distillers, data,"
            " train, optimizer, schedule, evals, synthesis, reports.",
        ),
    ],
)
def test_a_wrong_option_is_named_with_what_is_wrong(option, expected):
    assert problems_with(option) == [expected]
    assert problems(SMALL, [option])[0].startswith(f"--set {option}: ")


def test_options_and_the_file_report_together():
    assert problems(SMALL + "train: {epochs: 0}\n", ["optimizer.lr=-1"]) == [
        "r.yaml:7: train.epochs: expected an integer above 0, got 0.",
        "--set optimizer.lr=-1: expected a number above 0, got -1.",
    ]


def test_an_option_fixes_what_is_wrong_in_the_file():
    assert problems(SMALL + "train: {epochs: 0}\n", ["train.epochs=1"]) == []


def test_variables_work_in_options(monkeypatch):
    monkeypatch.setenv("N", "5")
    assert recipe(SMALL, "train.epochs=${N}").train.epochs == 5


def test_paths():
    assert parse_path("a.b[0].c") == ("a", "b", 0, "c")
    assert parse_path("a.0") == ("a", 0)
    assert parse_path("a[x]") == parse_path("") == parse_path("a.") == ()
    assert parse_path("a" + ".a" * 3_000) == ()
