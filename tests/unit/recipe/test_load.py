"""Reading recipes: messages with file and line, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recipes import SMALL, problems, recipe
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.shipped import shipped_recipes
from vlkd_cli.recipe.types import Schedule


def test_a_right_recipe_has_its_sections_typed():
    read = recipe(
        SMALL + "optimizer: {lr: 1e-4, betas: [0.9, 0.95]}\ntrain: {epochs: 2, batch_size: 1_024}\n"
    )
    assert (read.optimizer.lr, read.optimizer.keys) == (1e-4, {"betas": [0.9, 0.95]})
    assert (read.train.epochs, read.train.batch_size, read.train.precision) == (2, 1024, "fp32")
    assert read.towers["image"].keys == {"model": "resnet18"}


def test_weights_may_be_schedules():
    read = recipe(
        SMALL.replace("{name: infonce}", "{name: infonce, weight: {linear: [0, 1], epochs: 3}}")
    )
    assert read.distillers[0].weight == Schedule(linear=(0, 1), epochs=3)


def test_unknown_key_names_the_closest():
    lines = problems(SMALL.replace("{name: infonce}", "{name: infonce, max_logit_scal: 50}"))
    assert lines == [
        "r.yaml:5: distillers[0].max_logit_scal: unknown key. Did you mean 'max_logit_scale'? "
        "Accepted: logit_scale, learnable, max_logit_scale, positives, positive_weight, grade,"
        " negatives_of, name, weight, student, teacher, negatives, widths, width_weights, lr."
    ]


def test_unknown_section_names_the_closest():
    assert problems(SMALL + "optimzer: {lr: 1}\n") == [
        "r.yaml:7: optimzer: unknown key. Did you mean 'optimizer'? "
        "Accepted: towers, distillers, data, train, optimizer, schedule, evals, synthesis,"
        " reports."
    ]


def test_every_problem_is_reported_at_once_in_the_order_of_the_file():
    lines = problems("""\
        towers:
          image: {builder: torchvison, model: resnet18}
          text: {builder: openclip, model: RN50, train: none, lr: 1e-4}
        distillers:
          - {name: infonce, learnable: 2}
          - {name: siglip, student: imag}
        data: {reader: shapes, num_sample: 3}
        train: {batch_size: true, precision: bf61}
        optimizer: {lr: "1e-4", beta: [0.9, 0.99]}
        schedule: {warmup_steps: 3, warmup_epochs: 1}
        evals:
          - {suite: zero_shoot}
        reports: [csv, tensorbord]
        """)
    assert [line.partition(". ")[0] for line in lines] == [
        "r.yaml:2: towers.image.builder: unknown builder 'torchvison'",
        "r.yaml:3: towers.text.lr: has no effect: the tower is frozen (train: none).",
        "r.yaml:5: distillers[0].learnable: expected true or false, got 2.",
        "r.yaml:6: distillers[1].student: no tower 'imag'",
        "r.yaml:7: data.num_sample: unknown key",
        "r.yaml:8: train.batch_size: expected an integer above 0, got true.",
        "r.yaml:8: train.precision: expected 'fp32', 'bf16' or 'fp16', got 'bf61'",
        "r.yaml:9: optimizer.lr: expected a number above 0, got the string '1e-4'.",
        "r.yaml:9: optimizer.beta: unknown key",
        (
            "r.yaml:10: schedule.warmup_epochs: warm-up lasts for warmup_steps or for"
            " warmup_epochs, not both"
        ),
        "r.yaml:12: evals[0].suite: unknown suite 'zero_shoot'",
        "r.yaml:13: reports[1]: unknown sink 'tensorbord'",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "train: {precision: bf61}",
            (
                "r.yaml:7: train.precision: expected 'fp32', 'bf16' or 'fp16', got 'bf61'. Did you"
                " mean 'bf16'?"
            ),
        ),
        ("train: {epochs: 0}", "r.yaml:7: train.epochs: expected an integer above 0, got 0."),
        (
            "train: {epochs: 1.5}",
            "r.yaml:7: train.epochs: expected an integer above 0, got 1.5.",
        ),
        (
            "train: {ema: 1.5}",
            "r.yaml:7: train.ema: expected a number above 0 and below 1 or null, got 1.5.",
        ),
        ("train: fast", "r.yaml:7: train: expected keys, got 'fast'. Write {epochs: fast}."),
        (
            "schedule: {name: cosin}",
            (
                "r.yaml:7: schedule.name: expected 'cosine', 'linear', 'constant', 'steps', 'wsd'"
                " or 'rsqrt', got 'cosin'. Did you mean 'cosine'?"
            ),
        ),
        (
            "optimizer: {betas: [0.9]}",
            "r.yaml:7: optimizer.betas: expected a list of 2: a number, a number, got [0.9].",
        ),
        (
            "evals: {suite: zero_shot}",
            "r.yaml:7: evals: expected a list of suites, got {suite: zero_shot}.",
        ),
        (
            "evals: [zero_shot]",
            "r.yaml:7: evals[0]: expected keys, got 'zero_shot'. Write {suite: zero_shot}.",
        ),
        (
            "evals: [{every_epochs: 1}]",
            "r.yaml:7: evals[0]: key 'suite' is missing from the suite.",
        ),
    ],
)
def test_the_error_for_a_wrong_value_names_what_is_expected(change, expected):
    assert problems(SMALL + change + "\n") == [expected]


def test_a_component_in_short_form_shows_the_long_one():
    lines = problems(SMALL.replace("model: resnet18", "model: resnet18, head: linear"))
    assert lines == [
        "r.yaml:2: towers.image.head: expected keys, got 'linear'. Write {name: linear}."
    ]


def test_the_error_for_a_missing_component_key_names_its_type():
    lines = problems(SMALL.replace("model: resnet18", "pretrained: true"))
    assert lines == [
        "r.yaml:2: towers.image: key 'model' is missing; builder 'torchvision' needs it: text."
    ]


def test_the_error_for_a_bad_schedule_lists_its_forms():
    lines = problems(
        SMALL.replace(
            "{name: infonce}", "{name: infonce, weight: {linear: [1, 2], cosine: [1, 2]}}"
        )
    )
    assert lines == [
        "r.yaml:5: distillers[0].weight: a schedule has exactly one of 'linear', 'cosine' and"
        " 'jump'."
    ]


def test_readers_of_suites_and_of_mixes_are_checked():
    text = SMALL.replace(
        "{reader: shapes}",
        "{readers: [{reader: shapes, weight: 0}, {reader: shapes, num_sampels: 3}, {weight: 1}]}",
    )
    lines = problems(
        text + "evals: [{suite: retrieval, data: {reader: shapes, splitt: val, name: mine}}]\n"
    )
    assert [line.partition(" Accepted")[0].partition(" Known")[0] for line in lines] == [
        "r.yaml:6: data.readers[0].weight: expected a number above 0, got 0.",
        "r.yaml:6: data.readers[1].num_sampels: unknown key. Did you mean 'num_samples'?",
        "r.yaml:6: data.readers[2]: key 'reader' is missing.",
        "r.yaml:7: evals[0].data.splitt: unknown key. Did you mean 'split'?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            (
                "r.yaml: the recipe is empty. It needs at least 'towers:'; see `vlkd recipes show"
                " quickstart`."
            ),
        ),
        ("- 1\n", "r.yaml:1: a recipe is a mapping of sections such as 'towers:', got [1]."),
        (
            "towers: {}\n",
            (
                "r.yaml:1: towers: a recipe needs at least one tower: `image: {builder:"
                " torchvision, model: resnet18}`."
            ),
        ),
        ("train: {}\n", "r.yaml:1: key 'towers' is missing from the recipe."),
        (
            "towers:\n  image: 3\n",
            "r.yaml:2: towers.image: expected keys, got 3. image takes keys such as 'builder'.",
        ),
        (
            "towers: [a: b\n",
            (
                "r.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>', while"
                " parsing a flow sequence."
            ),
        ),
        ("towers:\n\timage: 3\n", "r.yaml:2: not valid YAML: a tab where spaces are needed."),
    ],
)
def test_a_file_that_is_not_a_recipe_ends_in_one_line(text, expected):
    assert problems(text) == [expected]


def test_a_recipe_is_found_by_file_or_shipped_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL)
    assert load_recipe(file).towers.keys() == {"image", "text"}
    assert load_recipe("quickstart") == load_recipe(shipped_recipes()["quickstart"])


def test_a_recipe_that_is_not_there_names_the_closest(tmp_path):
    (tmp_path / "mine.yaml").write_text(SMALL)
    with pytest.raises(
        RecipeError,
        match=r"no such recipe, neither a file nor a shipped one. Did you mean 'quickstart'\?",
    ):
        load_recipe("quickstrat")
    with pytest.raises(RecipeError, match=r"Did you mean '.*mine.yaml'\?"):
        load_recipe(tmp_path / "mien.yaml")
    with pytest.raises(RecipeError, match=r"is a folder\. Name the recipe's file in it"):
        load_recipe(tmp_path)


def test_a_file_that_is_not_text_ends_in_one_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"towers: \xff\xfe")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert str(caught.value) == f"{file}: not a text file in UTF-8 (byte 8)."


def test_recipes_survive_the_way_to_a_worker():
    from vlkd_cli.recipe.schema import Recipe

    read = recipe(
        SMALL.replace(
            "{name: infonce}", "{name: infonce, logit_scale: 5, weight: {cosine: [0, 1]}}"
        )
    )
    assert Recipe.model_validate_json(read.model_dump_json()) == read


def test_paths_in_messages_are_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/r.yaml").write_text("towrs: {}\n")
    with pytest.raises(RecipeError, match=r"^sub/r.yaml:1: "):
        load_recipe("sub/r.yaml")
