"""The pages about components."""

from __future__ import annotations

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.reference import about, distiller_rows, kinds, names_of


def test_a_page_has_words_facts_and_keys():
    page = about("distiller", "infonce")
    assert page.text.startswith("Softmax contrast")
    assert "Args:" not in page.text
    assert "Source:" in page.text
    assert ("direction", "symmetric") in page.facts
    assert page.keys[0] == (
        "logit_scale",
        "a number above 0 or 'from towers'",
        "14.2857",
        "initial factor on the cosines (not its logarithm); `from towers`: the one that the dual"
        " encoder was trained to whose halves are compared.",
    )


def test_sections_and_optimizers_have_pages_too():
    assert ("batch_size", "an integer above 0", "64", "pairs per process and step") in about(
        "section", "train"
    ).keys
    assert [key for key, *_ in about("optimizer", "sgd").keys][:2] == ["momentum", "dampening"]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("distilller", "x", "unknown kind 'distilller'. Did you mean 'distiller'?"),
        ("distiller", "infonc", "unknown distiller 'infonc'. Did you mean 'infonce'?"),
        ("section", "trian", "unknown section 'trian'. Did you mean 'train'?"),
        ("optimizer", "admw", "unknown optimizer 'admw'. Did you mean 'adamw'?"),
    ],
)
def test_misspelled_kinds_and_names_name_the_closest(kind, name, message):
    with pytest.raises(RecipeError) as caught:
        about(kind, name)
    assert str(caught.value).startswith(message)


def test_every_key_of_every_section_is_described():
    sections = names_of("section")
    assert len(sections) == 8
    for section in sections:
        assert [key for key, _, _, meaning in about("section", section).keys if not meaning] == []


def test_every_distiller_documents_its_source_and_what_crosses_ranks():
    rows = distiller_rows()
    assert len(rows) == len(names_of("distiller")) >= 20
    for name, _, direction, needs, state, crosses in rows:
        assert direction in ("symmetric", "one_way"), name
        assert needs, name
        assert state, name
        assert crosses, name


def test_kinds():
    assert {"section", "builder", "distiller", "reader", "suite", "sink", "optimizer"} <= set(
        kinds()
    )
