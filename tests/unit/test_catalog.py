"""Names and where they live."""

from __future__ import annotations

import pytest

from vlkd_cli import catalog
from vlkd_cli.errors import MissingPackageError, RecipeError


def test_a_name_is_located_without_importing():
    assert catalog.locate("distiller", "rkd") == ("vlkd_cli.distillers.rkd", "RKD")
    assert catalog.locate("distiller", "their.module:Thing") == ("their.module", "Thing")


@pytest.mark.parametrize(
    ("word", "guess"),
    [
        ("infonc", "infonce"),
        ("InfoNCE", "infonce"),
        ("siglp", "siglip"),
        ("barlow_twin", "barlow_twins"),
        ("zzz", None),
    ],
)
def test_the_closest_name(word, guess):
    assert catalog.closest(word, catalog.names("distiller")) == guess
    assert catalog.did_you_mean(word, catalog.names("distiller")) == (
        f" Did you mean '{guess}'?" if guess else ""
    )


def test_an_unknown_name_lists_the_known():
    with pytest.raises(RecipeError) as caught:
        catalog.locate("sink", "tensorbord")
    assert (
        str(caught.value)
        == "unknown sink 'tensorbord'. Did you mean 'tensorboard'? Known: csv, tensorboard, wandb."
    )


def test_a_missing_library_names_the_extra(monkeypatch):
    entry = catalog.Entry("reports.nothing_here:X", "for this test", "wandb")
    monkeypatch.setitem(catalog.CATALOG["sink"], "lacking", entry)
    with pytest.raises(MissingPackageError) as caught:
        catalog.load("sink", "lacking")
    assert (
        str(caught.value) == "sink 'lacking' needs an optional package: pip install 'vlkd[wandb]'."
    )


def test_a_missing_library_of_the_base_install_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(
        catalog.CATALOG["sink"], "broken", catalog.Entry("reports.nothing_here:X", "for this test")
    )
    with pytest.raises(ModuleNotFoundError):
        catalog.load("sink", "broken")
