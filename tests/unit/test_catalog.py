"""Names and where they live."""

from __future__ import annotations

import sys

import pytest

from vlkd_cli import catalog, errors
from vlkd_cli.catalog import CATALOG
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


def test_a_path_that_is_not_there_is_compared_with_what_its_folder_holds(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train.tsv").touch()
    guess = catalog.did_you_mean_path(tmp_path / "photos" / "trian.tsv")
    assert guess == f" Did you mean '{tmp_path / 'photos' / 'train.tsv'}'?"
    assert catalog.did_you_mean_path(tmp_path / "photo" / "train.tsv").endswith("/photos'?")
    assert catalog.did_you_mean_path(tmp_path / "other") == ""


def test_an_unknown_name_lists_the_known():
    with pytest.raises(RecipeError) as caught:
        catalog.locate("sink", "tensorbord")
    assert (
        str(caught.value)
        == "unknown sink 'tensorbord'. Did you mean 'tensorboard'? Known: csv, html,"
        " tensorboard, wandb, trackio, mlflow."
    )


def test_a_missing_library_names_the_extra(monkeypatch):
    entry = catalog.Entry("reports.nothing_here:X", "for this test", "wandb")
    monkeypatch.setitem(catalog.CATALOG["sink"], "lacking", entry)
    with pytest.raises(MissingPackageError) as caught:
        catalog.load("sink", "lacking")
    assert str(caught.value).startswith("sink 'lacking' needs an optional package: pip install ")


@pytest.mark.parametrize(
    ("folder", "files", "command"),
    [
        ("site-packages", (), "pip install 'vlkd[wandb]'"),
        ("checkout", ("pyproject.toml",), "pip install -e '{}[wandb]'"),
        (".", ("pyproject.toml",), "pip install -e '.[wandb]'"),
    ],
)
def test_the_install_command_fits_how_vlkd_is_installed(
    tmp_path, monkeypatch, folder, files, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(errors, "__file__", str(tmp_path / folder / "vlkd_cli" / "errors.py"))
    for file in files:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / file).touch()
    assert errors.install_command("wandb") == command.format((tmp_path / folder).resolve())


def test_a_sink_whose_package_is_missing_is_found_without_importing_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert catalog.missing_extra("sink", "wandb") == "wandb"
    assert catalog.missing_extra("sink", "csv") is None
    monkeypatch.setitem(sys.modules, "wandb", sys)
    assert catalog.missing_extra("sink", "wandb") is None


def test_every_extra_names_its_packages():
    extras = {entry.extra for kind in CATALOG.values() for entry in kind.values()} - {None}
    assert extras == set(catalog.PACKAGES)
    assert set(catalog.BASES) == {kind for kind, entries in CATALOG.items() if entries}


def test_a_missing_library_of_the_base_install_raises_with_its_traceback(monkeypatch):
    monkeypatch.setitem(
        catalog.CATALOG["sink"], "broken", catalog.Entry("reports.nothing_here:X", "for this test")
    )
    with pytest.raises(ModuleNotFoundError):
        catalog.load("sink", "broken")
