from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from tests.support.pages import ROOT
from vlkd_cli import catalog
from vlkd_cli.builders import listing
from vlkd_cli.builders.huggingface import known

ROW = {
    "name": "x",
    "builder": "torchvision",
    "modality": "image",
    "width": 1,
    "parameters": 2,
    "image_size_px": 3,
    "pretrained": [],
}


def test_rows_of_a_version_that_nobody_knows_are_computed_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    monkeypatch.setattr(listing, "_version", lambda builder: "99.0")
    monkeypatch.setattr(listing, "computed", lambda builder: [ROW])
    assert listing.rows_of("torchvision") == [ROW]
    monkeypatch.setattr(
        listing, "computed", lambda builder: pytest.fail("remembered rows are computed again")
    )
    assert listing.rows_of("torchvision") == [ROW]


def test_the_pinned_versions_are_those_that_come_with_the_package() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    packages = {"openclip": "open-clip-torch", "timm": "timm", "torchvision": "torchvision"}
    expected = {f"{builder}-{pins[package]}.json" for builder, package in packages.items()}
    assert {file.name for file in listing.SHIPPED.iterdir()} == expected


@pytest.mark.parametrize(
    ("builder", "least"), [("torchvision", 80), ("openclip", 280), ("timm", 1300)]
)
def test_pinned_libraries_need_no_computing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, builder: str, least: int
) -> None:
    _shipped_or_skip(builder)
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    monkeypatch.setattr(
        listing,
        "computed",
        lambda builder: pytest.fail("computed although the package brings the rows along"),
    )
    rows = listing.rows_of(builder)
    assert len(rows) >= least
    # Text towers that only the hub describes have no count.
    assert all(row["width"] and (row["parameters"] or row["modality"] == "text") for row in rows)
    assert sum(row["parameters"] is None for row in rows) == (10 if builder == "openclip" else 0)


@pytest.mark.parametrize(
    ("builder", "model", "modality"),
    [
        ("torchvision", "squeezenet1_1", "image"),
        ("openclip", "RN50", "image"),
        ("openclip", "RN50", "text"),
        ("openclip", "vit_medium_patch16_gap_256", "image"),
        ("timm", "mobilenetv3_small_050", "image"),
        ("timm", "efficientvit_b0", "image"),
        ("timm", "vit_tiny_patch16_224", "image"),
    ],
)
def test_shipped_numbers_are_those_of_the_tower_that_is_built(
    builder: str, model: str, modality: Literal["image", "text"]
) -> None:
    _shipped_or_skip(builder)
    (row,) = [
        row
        for row in listing.rows_of(builder)
        if (row["name"], row["modality"]) == (model, modality)
    ]
    backbone = catalog.load("builder", builder)(model=model).build(modality)
    assert (row["width"], row["parameters"]) == (
        backbone.width,
        sum(parameter.numel() for parameter in backbone.parameters()),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("builder", ["torchvision", "openclip", "timm"])
def test_shipped_rows_are_what_the_builder_finds(builder: str) -> None:
    brought = _shipped_or_skip(builder)
    # Through JSON, where tuples are lists.
    found = json.loads(
        json.dumps(
            [list(row.values()) for row in listing.measured(builder, listing.computed(builder))]
        )
    )
    assert json.loads(brought.read_text(encoding="utf-8")) == found


def _shipped_or_skip(builder: str) -> Path:
    brought = listing.shipped(builder)
    if not brought.is_file():
        pytest.skip(f"another {builder} than the pinned one is installed")
    return brought


def test_models_of_transformers_are_its_types_and_what_is_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "shared"))
    own = tmp_path / "huggingface" / "me" / "my-clip"
    snapshot = tmp_path / "shared" / "models--you--a-vit" / "snapshots" / "0123"
    for folder, config in (
        (own, {"model_type": "clip", "projection_dim": 8, "vision_config": {"image_size": 64}}),
        (snapshot, {"model_type": "vit", "hidden_size": 16, "image_size": 32}),
        (tmp_path / "huggingface" / "me" / "words", {"model_type": "bert", "hidden_size": 4}),
    ):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    odd = ("{}", '{"model_type": ["clip"]}', '{"model_type": "clip", "vision_config": [1]}')
    for number, text in enumerate((*odd, "[" * 100_000)):
        damaged = tmp_path / "huggingface" / "me" / f"damaged{number}"
        damaged.mkdir()
        (damaged / "config.json").write_text(text)
    rows = [row for row in listing.rows_of("huggingface") if row["modality"] == "image"]
    here = {row["name"]: row for row in rows if row["pretrained"] == ["on disk"]}
    assert set(here) == {"me/my-clip", "you/a-vit"}
    assert [here["you/a-vit"][key] for key in ("width", "image_size_px")] == [16, 32]
    assert [here["me/my-clip"][key] for key in ("width", "image_size_px")] == [8, 64]
    names = {row["name"] for row in rows} - set(here)
    assert {"vit", "dinov2", "siglip2", "clip", "swin", "resnet"} <= names and len(names) > 40
    texts = {row["name"] for row in listing.rows_of("huggingface") if row["modality"] == "text"}
    assert "bert" in texts and "vit" not in texts and "me/words" in texts
    assert set(rows[0]) == set(listing.FIELDS)
    assert known.types_of("image") == sorted(names)


def test_models_of_transformers_are_listed_without_importing_torch() -> None:
    code = (
        "import sys; from vlkd_cli.builders.listing import rows_of;"
        " assert len(rows_of('huggingface')) > 200; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
