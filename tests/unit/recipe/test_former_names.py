"""Former keys are understood, with a notice, wherever a recipe is read."""

from __future__ import annotations

import pytest

from tests.support.recipes import SMALL, problems, recipe
from vlkd_cli.recipe.former_names import KEYS, replace_former_names
from vlkd_cli.recipe.params import signature_of


def test_every_present_key_exists_and_no_former_one_does():
    names = [(kind, name) for kind, known in KEYS.items() for name in known]
    assert len(names) >= 10
    for kind, name in names:
        keys = signature_of(kind, name).key_names()
        assert set(KEYS[kind][name].values()) <= set(keys)
        assert not set(KEYS[kind][name]) & set(keys)


@pytest.mark.parametrize("name", KEYS["distiller"])
def test_a_former_key_of_a_distiller_is_replaced_and_reported(name):
    (former, present), *_ = KEYS["distiller"][name].items()
    values = {"distillers": [{"name": "infonce"}, {"name": name, former: 1}]}
    assert replace_former_names(values) == [
        f"distillers[1]: key '{former}' is now called '{present}'."
    ]
    assert values["distillers"][1] == {"name": name, present: 1}


SUITE = {
    "knn": ({"point": "projected"}, {"features": "head"}),
    "few_shot": (
        {"normalise": True, "point": "backbone"},
        {"normalize": True, "features": "backbone"},
    ),
    "linear_probe": ({"point": "normalised"}, {"features": "head", "normalize": True}),
    "zero_shot": ({"ensemble": "normalise", "topk": [1]}, {"ensemble": "normalize", "k": [1]}),
    "elevater": ({"features": "projected"}, {"features": "head"}),
    "clustering": ({"clusters": 3, "restarts": 2}, {"num_clusters": 3, "num_restarts": 2}),
}


@pytest.mark.parametrize("suite", SUITE)
def test_former_keys_and_values_of_a_suite_are_replaced(suite):
    former, present = SUITE[suite]
    values = {"evals": [{"suite": suite, **former}]}
    notices = replace_former_names(values)
    assert values["evals"] == [{"suite": suite, **present}]
    assert notices and all(notice.startswith("evals[0]: ") for notice in notices)
    assert replace_former_names(values) == []


def test_former_keys_of_augmentations_are_replaced_in_every_view():
    former = {"name": "simclr", "grey": 0.1}
    values = {"data": {"augment": dict(former), "views": {"key": dict(former), "plain": None}}}
    assert replace_former_names(values) == [
        "data.augment: key 'grey' is now called 'grayscale'.",
        "data.views.key: key 'grey' is now called 'grayscale'.",
    ]
    present = {"name": "simclr", "grayscale": 0.1}
    assert values["data"] == {"augment": present, "views": {"key": present, "plain": None}}


def test_former_keys_of_heads_and_adapters_are_replaced():
    values = {
        "towers": {
            "image": {"heads": {"proto": {"name": "prototypes", "prototypes": 9}}},
            "text": {"adapter": {"name": "lora", "rank_stabilised": True}},
        }
    }
    assert len(replace_former_names(values)) == 2
    assert values["towers"]["image"]["heads"]["proto"] == {
        "name": "prototypes",
        "num_prototypes": 9,
    }
    assert values["towers"]["text"]["adapter"] == {"name": "lora", "rank_stabilized": True}


def test_a_recipe_with_former_keys_loads_as_with_present_ones(capsys):
    former = "{name: dino, prototypes: 30, student_temp: 0.2}"
    present = "{name: dino, num_prototypes: 30, student_temperature: 0.2}"
    loaded = [
        recipe(SMALL.replace("{name: infonce}", text), "towers.text.train=none")
        for text in (former, present)
    ]
    assert loaded[0] == loaded[1]
    assert "key 'prototypes' is now called 'num_prototypes'." in capsys.readouterr().err


def test_the_null_negatives_of_a_stored_recipe_are_not_the_former_key_of_npid():
    values = {"distillers": [{"name": "npid", "negatives": given} for given in (None, 8)]}
    assert len(replace_former_names(values)) == 1
    assert values["distillers"] == [
        {"name": "npid", "negatives": None},
        {"name": "npid", "num_negatives": 8},
    ]


def test_a_key_written_in_both_spellings_is_refused():
    text = SMALL.replace("{name: infonce}", "{name: simcse, temp: 1, temperature: 1}")
    (line,) = problems(text)
    assert line.startswith("r.yaml:5: distillers[0].temp: unknown key.")


@pytest.mark.parametrize(
    "values", [None, [], {"distillers": 3}, {"towers": {"a": None}}, {"data": [], "evals": {}}]
)
def test_other_shapes_are_left_alone(values):
    assert replace_former_names(values) == []
