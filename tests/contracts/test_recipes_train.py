"""Every shipped recipe trains: two steps on rendered shapes, with tiny towers standing in for the
large ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.recipes import skip_without_its_library
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.shipped import shipped_recipes
from vlkd_cli.recipe.snapshot import recipe_to_yaml
from vlkd_cli.reports.csv import read_metrics

# Those of self-supervised learning have stand-ins of their own, in test_ssl_recipes.py, those of
# fine-tuning small data, in test_tuning_recipes.py and, for its page, in test_docs.py; the small
# ones need none, in test_small_recipes.py.
RECIPES = {
    name: path
    for name, path in shipped_recipes().items()
    if not name.startswith(("ssl/", "small/", "tune_", "synthesize", "finetune/products"))
}
VIT = {"layers": 1, "width": 32, "heads": 2}
DRAWN = {"reader": "shapes", "num_samples": 24, "size_px": 32}
# Sizes that would make a tiny run large, wherever they stand.
SMALLER = {
    "num_prototypes": 4,
    "queue_size": 16,
    "hidden": 32,
    "bottleneck": 16,
    "tokens": 2,
    "last": 1,
    "chunk": 4,
}


def stand_in(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe with tiny towers, rendered data and two steps; what it composes stays."""
    smaller = _shrunk(recipe)
    smaller["towers"] = {
        name: _tiny_tower(tower, folder) for name, tower in smaller["towers"].items()
    }
    kept = {key: value for key, value in smaller["data"].items() if key in ("augment", "views")}
    smaller["data"] = {**DRAWN, **kept, "workers": 0}
    smaller["train"] |= {
        "steps": 2,
        "batch_size": 8,
        "accumulate": 1,
        "log_every_steps": 1,
        "cache_dir": str(folder / "cache"),
    }
    smaller["evals"] = [
        _tiny_eval(entry)
        for entry in smaller["evals"]
        if entry["suite"] in ("zero_shot", "retrieval")
    ]
    smaller["reports"] = ["csv"]
    return smaller


def _tiny_tower(tower: dict[str, Any], folder: Path) -> dict[str, Any]:
    builder = tower.get("builder")
    if tower.get("like"):
        return {key: tower[key] for key in ("like", "train", "modality") if key in tower}
    if tower.get("run"):
        # What a run would bring along.
        tower = {k: v for k, v in tower.items() if k not in ("run", "tower", "checkpoint", "soup")}
        builder = tower["builder"] = "openclip"
        if tower.get("train") == "head":
            # A frozen copy of it could not have the weights of its head without the run.
            tower = {k: v for k, v in tower.items() if k not in ("train", "cache")}
    kept = {
        key: value
        for key, value in tower.items()
        if key not in ("model", "pretrained", "config", "image_size", "tokenizer", "max_length")
    }
    if kept.get("head"):
        heads = {"heads": VIT["heads"]} if "heads" in kept["head"] else {}
        kept["head"] = {**kept["head"], "width": VIT["width"], **heads}
    elif builder in ("torchvision", "timm"):
        # Another builder for a tower without a head, so that all widths agree.
        builder, kept["builder"] = "openclip", "openclip"
    if builder == "huggingface" and tower["modality"] == "image":
        # The pooler and head of a vision transformer go with any other.
        builder = kept["builder"] = "openclip"
    if builder == "openclip":
        return {
            **kept,
            "config": (
                {**VIT, "embed_dim": 32}
                | ({"image_size": 32, "patch_size": 8} if tower["modality"] == "image" else {})
            ),
        }
    if builder in ("torchvision", "timm"):
        # Patterns of parameter names need the network that they are written for.
        named = isinstance(tower.get("train"), list)
        return {
            **kept,
            "builder": "torchvision",
            "model": tower["model"] if named else "shufflenet_v2_x0_5",
            "image_size": 32,
        }
    if builder in ("sbert", "huggingface"):
        return {**kept, "builder": "huggingface", "config": VIT, "tokenizer": "clip"}
    assert builder == "adapters", builder
    return {**kept, "model": str(_tiny_bert(folder)), "pretrained": True}


def _tiny_bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    place = folder / "bert"
    if not place.exists():
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *"abcdefghijklmnopqrstuvwxyz",
            *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
        ]
        place.mkdir(parents=True)
        (place / "vocab.txt").write_text("\n".join(words))
        BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
        BertModel(config).save_pretrained(place)
    return place


def _tiny_eval(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in entry.items()
        if key not in ("data", "templates", "classes", "every_epochs", "every_steps")
    }
    return {**kept, "data": {**DRAWN, "split": "val"}, "last": True, "first": False}


def _shrunk(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: (
                min(SMALLER[key], part)
                if key in SMALLER and isinstance(part, int)
                else _shrunk(part)
            )
            for key, part in value.items()
        }
    return [_shrunk(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_trains_two_steps(name: str, tmp_path: Path) -> None:
    skip_without_its_library(RECIPES[name])
    recipe = yaml.safe_load(recipe_to_yaml(load_recipe(name)))
    for tower, spec in recipe["towers"].items():
        spec["modality"] = spec.get("modality") or ("image" if "image" in tower else "text")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(stand_in(recipe, tmp_path)), encoding="utf-8")
    assert start_training(TrainRequest(recipe=str(path), run=tmp_path / "run", quiet=True)) == 0
    assert [step for step, _ in read_metrics(tmp_path / "run")["train/loss"]] == [1, 2]


def test_there_are_recipes_to_train() -> None:
    assert len(RECIPES) >= 7
