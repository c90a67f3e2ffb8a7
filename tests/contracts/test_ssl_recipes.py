"""Every recipe of self-supervised learning trains on rendered pictures, with tiny towers in place
of the large ones: two steps on one and two ranks, interrupted and resumed to the same bits,
exported to plain library weights, and taken by an image-text recipe."""

from __future__ import annotations

import importlib
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.unit.engine.recipes import IMAGE, TEXT, differences, final_state, tiny_recipe, train
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.composition.composition import Composition
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.export import export
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.shipped import shipped_recipes
from vlkd_cli.recipe.snapshot import recipe_to_yaml
from vlkd_cli.recipe.types import Progress
from vlkd_cli.reports.csv import read_metrics
from vlkd_cli.towers.tower import Tower

RECIPES = [name for name in shipped_recipes() if name.startswith("ssl/")]
QUICK = ("ssl/simclr", "ssl/mae", "ssl/dino", "ssl/deepcluster")
SMALLER = {
    "num_prototypes": 8,
    "queue_size": 16,
    "hidden": 16,
    "bottleneck": 8,
    "width_inner": 16,
    "layers": 2,
    "heads": 2,
    "num_negatives": 8,
    "num_clusters": 3,
    "components": 3,
    "min_cluster": 2,
    "size_px": 32,
    "copies": 2,
    "cell_px": 20,
    "jitter_px": 4,
    "smallest": 2,
}
VIT = {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}
SWIN = {"window_size": 2, "depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2]}


def shrunk(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: min(SMALLER[key], part)
            if key in SMALLER and isinstance(part, int)
            else shrunk(part)
            for key, part in value.items()
        }
    return [shrunk(part) for part in value] if isinstance(value, list) else value


def tiny_tower(tower: dict[str, Any]) -> dict[str, Any]:
    if tower.get("follows"):
        return tower
    model = str(tower.get("model"))
    if tower["builder"] == "torchvision":
        return {**tower, "model": "resnet18", "image_size": 64}
    if tower["builder"] == "openclip":
        sizes = {"layers": 1, "width": 32, "heads": 2}
        if tower.get("model"):
            sizes |= {"image_size": 32, "patch_size": 8}
        kept = {key: part for key, part in tower.items() if key not in ("model", "pretrained")}
        return {**kept, "config": sizes}
    if tower["builder"] == "dvae":
        # Small and random; the real weights are not ours to ship.
        sizes = {"image_size": 32, "config": {"width": 8, "layers": 1, "codes": 16}}
        return {**{key: part for key, part in tower.items() if key != "pretrained"}, **sizes}
    if model.startswith("swin"):
        return {
            **tower,
            "model": "swin_tiny_patch4_window7_224",
            "image_size": 64,
            "config": SWIN,
        }
    config = {key: part for key, part in (tower.get("config") or {}).items() if key != "num_heads"}
    return {**tower, "model": "vit_tiny_patch16_224", "image_size": 32, "config": {**config, **VIT}}


def fitted(name: str, recipe: dict[str, Any]) -> None:
    """Widths of targets and numbers of hidden positions of the tiny towers."""
    heads = recipe["towers"]["image"].get("heads") or {}
    mask = (recipe["data"].get("augment") or {}).get("mask")
    if name == "ssl/barlow_twins":
        # Eight rows correlate almost all of 8192 features, and the loss sums their squares.
        heads["project"]["width"] = 64
    if name == "ssl/mae":
        heads["paint"]["width"] = 3 * 8 * 8
    if name == "ssl/maskfeat":
        heads["guess"]["width"] = 3 * 9
    if name == "ssl/masked_clip":
        heads["guess"]["width"] = 32
    if name == "ssl/cae":
        heads["code"]["width"] = 16
    if name in ("ssl/deepcluster", "ssl/odc"):
        recipe["distillers"][0] |= {"num_clusters": 3, "components": 3}
    if mask and mask.get("hidden"):
        mask["hidden"] = 5
    if mask and mask["name"] == "block" and mask.get("share"):
        # A rectangle of the usual 16 positions is all of a tiny tower's.
        mask["smallest"] = 2


def stand_in(name: str, folder: Path) -> dict[str, Any]:
    whole = yaml.safe_load(recipe_to_yaml(load_recipe(name)))
    towers = whole["towers"]
    recipe = shrunk(whole)
    recipe["towers"] = {key: tiny_tower({**towers[key], **recipe["towers"][key]}) for key in towers}
    kept = {key: recipe["data"][key] for key in ("augment", "views") if recipe["data"].get(key)}
    recipe["data"] = {"reader": "shapes", "num_samples": 16, "size_px": 64, "workers": 0, **kept}
    fitted(name, recipe)
    recipe["train"] |= {
        "epochs": 2,
        "steps": 2,
        "batch_size": 8,
        "log_every_steps": 1,
        "precision": "fp32",
        "sync_batch_norm": False,
        "cache_dir": str(folder / "cache"),
    }
    groups = recipe["optimizer"].pop("groups", [])
    for group in groups:
        group.pop("from", None)
    recipe["optimizer"]["groups"] = [group for group in groups if group.keys() != {"match"}]
    recipe["schedule"] = {"name": "constant"}
    recipe["evals"], recipe["reports"] = [], ["csv"]
    return recipe


def test_the_algorithms_are_there():
    assert len(RECIPES) >= 23


def written(name: str, folder: Path, **train: Any) -> str:
    """The tiny recipe in a file, with other settings of training."""
    recipe = stand_in(name, folder)
    recipe["train"] |= train
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def quick(*names: str) -> list[Any]:
    """Every recipe; all but a few only among the slow tests."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in names)) for name in RECIPES]


@pytest.mark.parametrize("name", quick(*QUICK))
def test_a_recipe_of_self_supervised_learning_trains_two_steps(name, tmp_path):
    path = written(name, tmp_path)
    assert start_training(TrainRequest(recipe=path, run=tmp_path / "run", quiet=True)) == 0
    losses = read_metrics(tmp_path / "run")["train/loss"]
    assert [step for step, _ in losses] == [1, 2]
    assert all(abs(value) < 1e4 for _, value in losses)


@pytest.mark.parametrize("name", quick("ssl/mocov2"))
def test_a_recipe_is_interrupted_resumed_exported_and_reused(name, tmp_path):
    # Two steps are an epoch, so that the cut is inside one.
    path = written(name, tmp_path, steps=4, save_every_steps=3, save_every_epochs=None, keep=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start_training(TrainRequest(recipe=path, run=whole, quiet=True))
    shutil.copytree(whole, cut)
    (cut / "checkpoints" / "step_00000004.pt").unlink()
    shutil.copy(cut / "checkpoints" / "step_00000003.pt", cut / "checkpoints" / "last.pt")
    assert final_state(cut)["step"] == 3
    start_training(TrainRequest(resume=str(cut), quiet=True))
    assert differences(final_state(whole), final_state(cut)) == []

    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    towers = list(recipe["towers"])
    export(target=str(whole), output=tmp_path / "out")
    loaded = load_towers(load_recipe(path), whole, Checkpoint.load(whole / "checkpoints/last.pt"))
    images = torch.rand(2, 3, *loaded["image"].input.size_px)
    for key in towers:
        if loaded[key].modality == "image":
            check_exported(tmp_path / "out" / key, loaded[key].eval(), images)

    # One line puts any of its towers into an image-text recipe.
    for key in (key for key in towers if loaded[key].modality == "image"):
        reused = tiny_recipe(
            towers={
                "image": {"run": str(whole), "tower": key, "head": {"name": "linear", "width": 16}},
                "text": {**TEXT, "head": {"name": "linear", "width": 16}},
            },
            train={"steps": 1},
        )
        run = train(tmp_path, reused, f"reused_{key}")
        (_, loss), *_ = read_metrics(run)["train/infonce"]
        assert 0 < loss < 10


def check_exported(folder: Path, tower: Tower, images: Tensor) -> None:
    """The line that the page of an exported tower shows gives the same features with the library
    alone."""
    page = yaml.safe_load((folder / "vlkd_tower.yaml").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"images": images}
    if "dall_e." in page["python"]:  # a package of its own, see test_dvae.py
        return
    for name in ("timm", "torch", "torchvision", "open_clip", "safetensors.torch"):
        if f"{name}." in page["python"]:
            names[name.partition(".")[0]] = importlib.import_module(name.partition(".")[0])
            importlib.import_module(name)
    with chdir(folder):  # which the paths of its page are relative to
        exec(page["python"], names)
    names["model"].eval()
    with torch.no_grad():
        torch.testing.assert_close(
            eval(page["feature"], names), tower.features(images), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", quick("ssl/npid"))
def test_state_moves_once_per_optimizer_step_however_many_batches_it_has(
    name, tmp_path, monkeypatch
):
    path = written(name, tmp_path, batch_size=4, accumulate=2)
    moved: list[str] = []
    commit, follow = Composition.commit, MomentumTower.follow

    def count_commit(composition: Composition, progress: Progress) -> None:
        moved.append(f"composition {progress.step}")
        commit(composition, progress)

    def count_follow(tower: MomentumTower, *given: Any) -> None:
        moved.append("follower")
        follow(tower, *given)

    monkeypatch.setattr(Composition, "commit", count_commit)
    monkeypatch.setattr(MomentumTower, "follow", count_follow)
    start_training(TrainRequest(recipe=path, run=tmp_path / "run", quiet=True))
    recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    followers = ["follower"] * sum("follows" in spec for spec in recipe["towers"].values())
    assert moved == ["composition 0", *followers, "composition 1", *followers]
    for key, value in final_state(tmp_path / "run")["distillers"].items():
        if key.endswith("queue.position"):  # the rows of two steps of two batches
            assert value == 16 % len(final_state(tmp_path / "run")["distillers"][rows_of(key)])


def rows_of(position: str) -> str:
    return position.removesuffix("position") + "rows"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_on_two_ranks(name, tmp_path):
    path = written(name, tmp_path, batch_size=4)
    request = TrainRequest(recipe=path, run=tmp_path / "run", cpu_workers=2, quiet=True)
    assert start_training(request) == 0
    losses = read_metrics(tmp_path / "run")["train/loss"]
    assert [step for step, _ in losses] == [1, 2]
    assert all(abs(value) < 1e4 for _, value in losses)


WIDE = {"name": "linear", "width": 16}
PROJECT = {"project": WIDE}
TWO = {"two": {"name": "simclr", "copies": 2}}
LINES: dict[str, dict[str, Any]] = {
    "ntxent": {
        "line": {"student": "image.project@two.1", "teacher": "image.project@two.2"},
        "heads": PROJECT,
        "views": TWO,
    },
    "moco": {
        "line": {
            "student": "image.project@two.1",
            "teacher": "image_key.project@two.2",
            "queue_size": 16,
        },
        "heads": PROJECT,
        "views": TWO,
        "towers": {"image_key": {"follows": "image", "momentum": 0.9}},
    },
    "swav": {
        "line": {"student": "image.project@two", "teacher": "image.project@two"},
        "heads": PROJECT,
        "views": TWO,
    },
    "regress": {
        "line": {"student": "image.guess@hiding", "teacher": "image.pixels@hiding"},
        "heads": {
            "guess": {"name": "linear", "width": 192, "reads": "tokens", "at": "hidden"},
            "pixels": {"name": "patches", "reads": "input", "at": "hidden"},
        },
        "views": {"hiding": {"name": "standard", "mask": {"name": "random", "share": 0.5}}},
        "keys": {"masks": "replace"},
    },
    "view_order": {
        "line": {"student": "image.turn@turned"},
        "heads": {"turn": {"name": "linear", "width": 4}},
        "views": {"turned": {"name": "quarter_turns"}},
    },
}
"""A line of self-supervised learning for any image-text recipe, with what it reads."""


def with_lines(*kinds: str) -> dict[str, Any]:
    """CLIP on rendered pictures, and these objectives."""

    def parts(name: str) -> dict[str, Any]:
        return {key: part for kind in kinds for key, part in LINES[kind].get(name, {}).items()}

    return tiny_recipe(
        towers={
            "image": {**IMAGE, "heads": {"head": WIDE, **parts("heads")}, **parts("keys")},
            "text": {**TEXT, "head": WIDE},
            **parts("towers"),
        },
        distillers=[
            {"name": "infonce", "student": "image", "teacher": "text"},
            *({"name": kind, **LINES[kind]["line"]} for kind in kinds),
        ],
        data={"views": parts("views")},
        train={"steps": 2},
    )


@pytest.mark.parametrize(
    "kinds",
    [
        ("ntxent",),
        ("ntxent", "regress"),
        ("moco", "view_order"),
        ("swav", "regress", "view_order"),
        pytest.param(tuple(LINES), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_line_of_self_supervision_is_added_to_an_image_text_recipe(kinds, tmp_path):
    recipe = with_lines(*kinds)
    metrics = read_metrics(train(tmp_path, recipe))
    for step in range(2):
        terms = [metrics[f"train/{name}"][step][1] for name in ("infonce", *kinds)]
        assert all(0 < term < 20 for term in terms)
        assert metrics["train/loss"][step][1] == pytest.approx(sum(terms), rel=1e-5)
    # What is added reads views of its own and changes nothing of what was there before; a mask
    # token takes random numbers before the heads do.
    if "masks" not in recipe["towers"]["image"]:
        alone = read_metrics(train(tmp_path, with_lines(), "alone"))
        assert metrics["train/infonce"][0] == alone["train/infonce"][0]


def test_features_are_measured_in_each_epoch_without_labels_in_training(tmp_path):
    pictures = Shapes(num_samples=36, size_px=64)
    for index in range(len(pictures)):
        split, kind = "train" if index < 24 else "val", "even" if index % 2 else "odd"
        place = tmp_path / "photos" / split / kind / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pictures.image(index).save(place)
    recipe = stand_in("ssl/simclr", tmp_path)
    images = {"reader": "images", "path": str(tmp_path / "photos" / "train")}
    labeled = {"reader": "classification", "path": str(tmp_path / "photos"), "split": "val"}
    recipe["data"] = {**images, "augment": recipe["data"]["augment"], "workers": 0}
    recipe["train"] |= {"epochs": 2, "steps": None}
    recipe["evals"] = [
        {"suite": "knn", "k": [1], "data": labeled, "first": True, "every_epochs": 1}
    ]
    run = train(tmp_path, recipe)
    (found,) = [value for name, value in read_metrics(run).items() if name.endswith(".k1_top1")]
    # 24 pictures are three steps of eight.
    assert [step for step, _ in found] == [0, 3, 6]
    assert all(0 <= value <= 1 for _, value in found)
