"""The table of models by task: widths from listings and files, never written down."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

import vlkd_cli
from tests.support.pages import ROOT
from vlkd_cli import catalog
from vlkd_cli.builders import listing
from vlkd_cli.builders.by_task import describe_models, every_model
from vlkd_cli.commands.list_models import list_models
from vlkd_cli.commands.show import show
from vlkd_cli.engine.launching.targets import target_of
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.named_models import named_models


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def width(name: str) -> int | None:
    (row,) = [row for row in describe_models() if row["name"] == name]
    return row["output_dim"]


def test_widths_are_those_of_the_listings():
    assert [width(name) for name in ("resnet-base", "efficientnet-base", "efficientnet-large")] == [
        2048,
        1792,
        2560,
    ]
    # Finetuner's pages say 1024 for the large CLIP; its shared space has 768.
    assert [width(name) for name in ("clip-base-en", "clip-large-en", "clip-base-multi")] == [
        512,
        768,
        512,
    ]


def test_widths_change_with_the_listing(monkeypatch):
    row = {"name": "resnet50", "modality": "image", "width": 7, "parameters": 9}
    monkeypatch.setattr("vlkd_cli.builders.by_task.rows_of", lambda builder: [row])
    assert width("resnet-base") == 7


def test_parameters_are_those_of_all_encoders_where_every_one_is_listed():
    if not all(listing.shipped(builder).is_file() for builder in ("openclip", "torchvision")):
        pytest.skip("another open_clip or torchvision than the pinned one is installed")
    found = {row["name"]: row["parameters"] for row in describe_models()}
    assert found["resnet-base"] == 23_508_032
    assert found["clip-base-en"] == 87_849_216 + 63_428_096
    assert found["clip-base-multi"] is found["bert-base-en"] is found["pointnet-base"] is None


def test_widths_of_hub_models_come_from_their_files_and_are_blank_without(empty_caches):
    assert width("bert-base-en") is width("distiluse-base-multi") is None
    bert = empty_caches / "huggingface" / "bert-base-cased"
    bert.mkdir(parents=True)
    (bert / "config.json").write_text('{"model_type": "bert", "hidden_size": 24}')
    assert width("bert-base-en") == 24
    bert.joinpath("config.json").write_text("[")
    assert width("bert-base-en") is None


@pytest.mark.parametrize(
    ("pooling", "dense", "expected"),
    [
        ({"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}, None, 24),
        ({"embedding_dimension": 24, "pooling_mode": ["mean", "max"]}, None, 48),
        ({"embedding_dimension": 24, "pooling_mode": "mean"}, 16, 16),
    ],
)
def test_the_last_module_of_a_sentence_encoder_determines_its_width(
    empty_caches, pooling, dense, expected
):
    row = named_models()["distiluse-base-multi"]
    folder = empty_caches / "sbert" / row.towers["text"]["model"]
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    for path, settings in (("1_Pooling", pooling), ("2_Dense", {"out_features": dense})):
        (folder / path).mkdir(parents=True)
        (folder / path / "config.json").write_text(json.dumps(settings))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"path": path, "type": f"sentence_transformers.models.{kind}"}
                for path, kind in modules[: 3 if dense else 2]
            ]
        )
    )
    assert width("distiluse-base-multi") == expected


def test_every_named_model_of_a_listing_is_in_it():
    for model in named_models().values():
        for modality, section in model.towers.items():
            if listing.shipped(section["builder"]).is_file():
                rows = listing.rows_of(section["builder"])
                (row,) = [
                    row
                    for row in rows
                    if (row["name"], row["modality"]) == (section["model"], modality)
                ]
                assert section["pretrained"] is True or section["pretrained"] in row["pretrained"]


def test_rows_are_those_of_the_task_and_a_misspelled_task_is_reported():
    assert [row["name"] for row in vlkd_cli.describe_models(task="image-to-image")] == [
        "efficientnet-base",
        "efficientnet-large",
        "resnet-base",
        "resnet-large",
    ]
    with pytest.raises(UserError, match=r"no task 'image-to-imag'\. Did you mean 'image-to-image'"):
        vlkd_cli.describe_models(task="image-to-imag")


def test_the_table_shows_what_cannot_be_used_and_what_must_be_fetched(capsys, monkeypatch):
    known = [name for name in catalog.names("builder") if name != "pointnet"]
    names = catalog.names
    monkeypatch.setattr(catalog, "names", lambda kind: known if kind == "builder" else names(kind))
    list_models(task="mesh-to-mesh")
    assert capsys.readouterr().out.endswith(
        "pointnet-base cannot be used: this version has no builder 'pointnet'.\n"
    )
    list_models(task="text-to-text", search="bert-base-en")
    printed = capsys.readouterr().out
    assert "The output_dim of bert-base-en, sbert-base-en is known once" in printed


@pytest.mark.parametrize(
    ("option", "value"), [("builder", "timm"), ("modality", "image"), ("pretrained", True)]
)
def test_options_without_effect_next_to_a_task_are_refused(option, value):
    with pytest.raises(UserError, match=f"--{option} has no effect with --task"):
        list_models(task="image-to-image", **{option: value})


def test_all_adds_the_models_of_builders_that_have_every_tower_of_the_task(capsys):
    rows = {row["name"]: row for row in every_model("image-to-image")}
    assert list(rows)[:4] == [row["name"] for row in vlkd_cli.describe_models("image-to-image")]
    assert rows["torchvision:resnet50"]["output_dim"] == 2048
    assert rows["openclip:ViT-B-32"]["output_dim"] == 512
    assert "openai" in rows["openclip:ViT-B-32"]["description"]
    assert len(rows) > 1000
    pairs = {row["name"] for row in every_model("text-to-image")}
    assert "openclip:ViT-B-32" in pairs and "torchvision:resnet50" not in pairs
    assert len(every_model("synthesis")) == len(vlkd_cli.describe_models("synthesis"))
    list_models(task="image-to-image", search="torchvision:resnet50", all_=True)
    printed = capsys.readouterr().out
    assert printed.split("\n")[0].split()[2:6] == ["output_dim", "parameters", "architecture", "on"]
    assert re.search(r"torchvision:resnet50 +image-to-image +2048 +23.5M .* no ", printed)
    with pytest.raises(UserError, match="--all has no effect without --task"):
        list_models(all_=True)


def test_a_model_by_name_can_be_evaluated_and_a_misspelled_one_is_named(tmp_path):
    target = target_of("clip-base-en", [], tmp_path, False)
    assert {name: tower.model_dump()["model"] for name, tower in target.recipe.towers.items()} == {
        "image": "ViT-B-32",
        "text": "ViT-B-32",
    }
    assert {tower.train for tower in target.recipe.towers.values()} == {"none"}
    with pytest.raises(UserError, match="'crossencoder-base-en' scores pairs of texts"):
        target_of("crossencoder-base-en", [], tmp_path, False)
    with pytest.raises(UserError, match="Did you mean 'resnet-base'"):
        target_of("resnet-bse", [], tmp_path, False)


def test_the_snippet_of_the_page_prints_names_and_defaults(capsys):
    runpy.run_path(str(ROOT / "docs" / "snippets" / "models_by_task.py"))
    printed = capsys.readouterr().out
    assert "resnet-base 2048\n" in printed
    assert "pooler.p 3\n" in printed


def test_a_misspelled_model_of_a_builder_has_no_page():
    for name in ("torchvision:resnet50", "timm:resnet10t.c3_in1k", "openclip:hf-hub:org/name"):
        assert vlkd_cli.list_model_options(name)["options"]
    with pytest.raises(
        UserError, match=r"torchvision has no model 'resnet5'\. Did you mean 'resnet"
    ):
        vlkd_cli.list_model_options("torchvision:resnet5")
    with pytest.raises(UserError, match="openclip has no model 'ViT-B-3'"):
        show("model", "openclip:ViT-B-3:openai")
