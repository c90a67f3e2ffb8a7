from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_cli.builders import listing

ROW = {"name": "x", "builder": "torchvision", "modality": "image", "width": 1, "parameters": 2, "image_size_px": 3, "pretrained": []}


def test_rows_of_a_version_that_nobody_knows_are_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    monkeypatch.setattr(listing, "_version", lambda builder: "99.0")
    monkeypatch.setattr(listing, "computed", lambda builder: [ROW])
    assert listing.rows_of("torchvision") == [ROW]
    monkeypatch.setattr(listing, "computed", lambda builder: pytest.fail("remembered rows are computed again"))
    assert listing.rows_of("torchvision") == [ROW]


def test_the_pinned_torchvision_needs_no_computing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not listing.shipped("torchvision").is_file():
        pytest.skip("another torchvision than the pinned one is installed")
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    monkeypatch.setattr(listing, "computed", lambda builder: pytest.fail("computed although the package brings the rows along"))
    rows = {row["name"]: row for row in listing.rows_of("torchvision")}
    assert len(rows) >= 80 and rows["resnet18"]["width"] == 512
