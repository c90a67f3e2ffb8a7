from __future__ import annotations

import json
from typing import Any

import pytest

from vlkd_cli.builders import listing
from vlkd_cli.commands.list_models import list_models
from vlkd_cli.errors import UserError

ROWS = [
    {
        "name": "resnet18",
        "builder": "torchvision",
        "modality": "image",
        "width": 512,
        "parameters": 11_176_512,
        "image_size_px": 224,
        "pretrained": ["IMAGENET1K_V1"],
    },
    {
        "name": "resnet9",
        "builder": "torchvision",
        "modality": "image",
        "width": 64,
        "parameters": None,
        "image_size_px": 32,
        "pretrained": [],
    },
]


@pytest.fixture(autouse=True)
def known_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        listing, "rows_of", lambda builder: ROWS if builder == "torchvision" else []
    )


def test_the_table_has_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    list_models(builder="torchvision")
    printed = capsys.readouterr().out
    for word in (
        "name",
        "modality",
        "width",
        "parameters",
        "input px",
        "resnet18",
        "11.2M",
        "512",
        "224",
        "IMAGENET1K_V1",
        "resnet9",
    ):
        assert word in printed


def test_json_is_a_list_of_the_chosen_rows(capsys: pytest.CaptureFixture[str]) -> None:
    list_models(pretrained=True, json=True)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert rows == ROWS[:1]


def test_a_misspelled_builder_and_a_pattern_without_match_say_so() -> None:
    with pytest.raises(
        UserError, match=r"--builder: no builder 'torchvison'\. Did you mean 'torchvision'\?"
    ):
        list_models(builder="torchvison")
    with pytest.raises(
        UserError,
        match=(
            r"--search: no model of builder 'torchvision' matches 'resnet81\*'\. Did you mean"
            r" 'resnet18'\?"
        ),
    ):
        list_models(builder="torchvision", search="resnet81*")
    for modality in ("text", "mesh"):
        with pytest.raises(UserError, match=rf"--search: no {modality} model matches"):
            list_models(modality=modality)
