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
def test_a_former_key_of_a_distiller_is_replaced_and_told(name):
    (former, present), *_ = KEYS["distiller"][name].items()
    values = {"distillers": [{"name": "infonce"}, {"name": name, former: 1}]}
    assert replace_former_names(values) == [
        f"distillers[1]: key '{former}' is now called '{present}'."
    ]
    assert values["distillers"][1] == {"name": name, present: 1}


def test_a_recipe_with_former_keys_loads_as_with_present_ones(capsys):
    former = "{name: dino, prototypes: 30, student_temp: 0.2}"
    present = "{name: dino, num_prototypes: 30, student_temperature: 0.2}"
    loaded = [
        recipe(SMALL.replace("{name: infonce}", text), "towers.text.train=none")
        for text in (former, present)
    ]
    assert loaded[0] == loaded[1]
    assert "key 'prototypes' is now called 'num_prototypes'." in capsys.readouterr().err


def test_a_key_written_in_both_spellings_is_refused():
    text = SMALL.replace("{name: infonce}", "{name: simcse, temp: 1, temperature: 1}")
    (line,) = problems(text)
    assert line.startswith("r.yaml:5: distillers[0].temp: unknown key.")


@pytest.mark.parametrize("values", [None, [], {"distillers": 3}, {"towers": {"a": None}}])
def test_other_shapes_are_left_alone(values):
    assert replace_former_names(values) == []
