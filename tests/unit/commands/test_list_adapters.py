"""`vlkd list-adapters`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.encoders import write_encoder
from vlkd_cli import catalog
from vlkd_cli.commands.list_adapters import list_adapters
from vlkd_cli.errors import MissingPackageError
from vlkd_cli.recipe import adapters as adapter_rules

needs_adapters = pytest.mark.skipif(
    not adapter_rules.is_installed(), reason="needs the extra 'adapters'"
)


@needs_adapters
def test_every_method_of_the_catalogue_has_rows_with_keys_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list_adapters(model=str(write_encoder(tmp_path)), json_=True)
    rows = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(row["name"] for row in rows)) == catalog.names("adapter")
    lora = next(row for row in rows if row["name"] == "lora")
    assert (lora["trained"], lora["encoders"], lora["merges"]) == (4096, ["any"], True)
    assert lora["keys"] == ["rank", "alpha", "targets", "dropout", "rank_stabilized", "last"]
    assert lora["share"] == pytest.approx(4096 / 72832, rel=0.01)
    # Width 64 over 32 is a bottleneck of 2, which Compacter cannot divide by 4.
    compacter = next(row for row in rows if row["name"] == "compacter")
    assert compacter["trained"] is None and "bottleneck of 2" in compacter["refused"]


@needs_adapters
def test_the_table_shows_what_is_refused_on_the_given_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list_adapters(model=str(write_encoder(tmp_path, "mpnet")))
    out = capsys.readouterr().out
    assert "unipelt: 'unipelt' does not work on mpnet encoders" in out
    assert "all but mpnet" in out


def test_without_the_libraries_the_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_rules, "is_installed", lambda: False)
    with pytest.raises(MissingPackageError, match="list-adapters needs an optional package"):
        list_adapters()
