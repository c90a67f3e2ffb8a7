"""The name is the place, and the signature is the schema: for every entry of the catalogue."""

from __future__ import annotations

import pytest

from vlkd_cli import catalog
from vlkd_cli.catalog import CATALOG
from vlkd_cli.recipe.key_rows import key_rows
from vlkd_cli.recipe.messages import described_type
from vlkd_cli.recipe.optimizers import optimizer_names
from vlkd_cli.recipe.params import module_file, signature_of
from vlkd_cli.recipe.reference import about
from vlkd_cli.recipe.schema import DataSpec, DistillerSpec, EvalSpec, TowerSpec

ENTRIES = [(kind, name) for kind in CATALOG for name in CATALOG[kind]]

# Keys that the place of a component declares for every component there.
SHARED = {"builder": TowerSpec, "distiller": DistillerSpec, "reader": DataSpec, "suite": EvalSpec}


def test_the_catalogue_is_as_long_as_it_was():
    assert len(ENTRIES) >= 75


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_an_entry_is_in_the_module_that_the_catalogue_names(kind, name):
    module, attribute = catalog.locate(kind, name)
    assert module_file(module) is not None, f"{module} does not exist"
    assert signature_of(kind, name).attribute == attribute


@pytest.mark.parametrize(
    ("kind", "name"),
    [entry for entry in ENTRIES if entry[0] in ("builder", "distiller", "reader", "suite", "sink")],
)
def test_the_name_is_the_place(kind, name):
    module, attribute = catalog.locate(kind, name)
    # A builder has a folder of its own, with its class in builder.py.
    file = module.removesuffix(".builder").rpartition(".")[2]
    families = {"clip_kd"}
    assert file == name or file in families, f"{kind} '{name}' lives in {file}.py"
    assert attribute[0].isupper()


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_show_has_a_page_with_words_and_every_key_described(kind, name):
    page = about(kind, name)
    assert page.text.strip(), "no docstring"
    for key, words, default, meaning in page.keys:
        assert words not in ("", "a value"), f"{key}: what type is it?"
        assert default, key
        assert meaning, f"{key} is not described under Args: in the docstring"


@pytest.mark.parametrize(("kind", "name"), [entry for entry in ENTRIES if entry[0] in SHARED])
def test_a_component_s_keys_do_not_collide_with_those_of_its_place(kind, name):
    assert set(signature_of(kind, name).key_names()) & set(SHARED[kind].model_fields) == set()


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_the_signature_read_from_source_is_the_imported_one(kind, name):
    import inspect

    from vlkd_cli.errors import MissingPackageError

    try:
        component = catalog.load(kind, name)
    except MissingPackageError as error:
        pytest.skip(str(error))
    parameters = inspect.signature(component.__init__).parameters.values()
    imported = [
        parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    ]
    assert signature_of(kind, name).key_names() == imported
    assert (
        not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) or not imported
    )


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_has_a_page(name):
    rows = about("optimizer", name).keys
    assert {"lr", "weight_decay", "decay_all"} <= {key for key, *_ in rows}


def test_rows_of_keys_are_words():
    for kind, name in ENTRIES:
        for key in signature_of(kind, name).keys:
            assert "typing." not in described_type(key.annotation), f"{kind} {name}: {key.name}"
            assert key_rows([key])
