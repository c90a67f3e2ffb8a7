from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlkd_cli import catalog
from vlkd_cli.builders import listing
from vlkd_cli.builders.backbone import ModelInfo

ROWS = [
    {"name": "ResNet18", "builder": "b", "modality": "image", "width": 512, "parameters": 1, "image_size_px": 224, "pretrained": ["V1"]},
    {"name": "bert", "builder": "b", "modality": "text", "width": None, "parameters": None, "image_size_px": None, "pretrained": []},
]


def chosen(**keys: object) -> list[str]:
    return [row["name"] for row in listing.choose(ROWS, **{"modality": None, "pattern": "*", "pretrained": False, **keys})]  # type: ignore[arg-type]


def test_rows_are_chosen_by_modality_pattern_and_weights() -> None:
    assert chosen() == ["ResNet18", "bert"]
    assert chosen(modality="text") == ["bert"]
    assert chosen(pattern="resnet*") == chosen(pattern="NET") == chosen(pretrained=True) == ["ResNet18"]
    assert chosen(pattern="18*") == []


def test_fields_are_those_of_a_model() -> None:
    assert ModelInfo._fields == listing.FIELDS


def test_a_listing_is_computed_once_per_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    calls = []

    class Fake:
        @classmethod
        def list_models(cls) -> list[ModelInfo]:
            calls.append(1)
            return [ModelInfo("a", "sbert", "text", 3, None, None, ("own",))]

    monkeypatch.setattr(catalog, "load", lambda kind, name: Fake)
    assert listing.rows_of("sbert")[0]["name"] == listing.rows_of("sbert")[0]["name"] == "a"
    assert len(calls) == 1
    next((tmp_path / "listings").iterdir()).write_text("damaged")
    listing.rows_of("sbert")
    assert len(calls) == 2
    assert json.loads(next((tmp_path / "listings").iterdir()).read_text())[0]["width"] == 3
    monkeypatch.setenv("VLKD_CACHE", "/proc/nowhere")
    assert listing.rows_of("sbert")[0]["name"] == "a"
