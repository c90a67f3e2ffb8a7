"""Meshes from training to the search page: alone, and with texts and images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlkd_cli
from tests.support.data_sets import write_photos
from tests.support.meshes import small_tower, write_boxes
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import IMAGE, TEXT, differences, final_state, tiny_recipe, train
from tests.unit.engine.test_training import _Killed, _stop_after
from vlkd_cli.data.meshes import clouds
from vlkd_cli.errors import UserError
from vlkd_cli.reports.csv import read_metrics

HEAD = {"head": {"name": "linear", "width": 16}}


def recipe_of(folder: Path, towers: dict[str, Any], **train: Any) -> dict[str, Any]:
    recipe = tiny_recipe(train={"epochs": 1, "batch_size": 4, **train})
    recipe["towers"] = towers
    recipe["data"] = {"reader": "meshes", "path": str(folder / "boxes"), "workers": 0}
    return recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run of a mesh and a text tower, and an index of meshes."""
    folder = tmp_path_factory.mktemp("home")
    write_boxes(folder / "boxes")
    (folder / "boxes" / "flat_slab" / "texture.png").write_bytes(b"not read")
    towers = {"mesh": small_tower(**HEAD), "text": {**TEXT, **HEAD}}
    run = recipe_of(folder, towers, epochs=60, batch_size=8)
    run["data"]["augment"] = {"name": "none"}
    run["optimizer"] = {"name": "adamw", "lr": 3e-3}
    run["distillers"] = [{"name": "infonce", "positives": "label"}]
    data = {"reader": "meshes", "path": run["data"]["path"]}
    search = {"suite": "search", "relevant": "label", "data": data, "k": [1, 4]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLKD_CACHE", str(folder / "cache"))
        train(folder, {**run, "evals": [search]}, "run")
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("VLKD_CACHE", str(home / "cache"))


def test_texts_find_meshes_of_their_class(home):
    values = read_metrics(home / "run")
    assert values["eval/search.boxes.precision@4"][-1][1] > 0.8  # chance is a half


def test_encode_and_search_work_on_meshes_and_show_them(home, capsys):
    assert leaves(["encode", "run", "boxes", "boxes.npy"]) == 0
    page = json.loads(Path("boxes.npy.json").read_text())
    assert page["modality"] == "mesh" and page["ids"][0] == "flat_slab/00.off"
    encoder = vlkd_cli.load("run")
    files = sorted(Path("boxes").rglob("*.off"))
    assert np.array_equal(np.load("boxes.npy"), encoder.encode(files))
    capsys.readouterr()
    found = {}
    for query in ("a 3D model of a tall post", "boxes/tall_post/01.off"):
        words = ["search", "boxes.npy", query, "-k", "3", "--json", "--page", "page.html"]
        assert leaves(words) == 0
        found[query] = json.loads(capsys.readouterr().out)[0]
    assert found["a 3D model of a tall post"]["tower"] == "text"
    asked = found["boxes/tall_post/01.off"]
    assert asked["tower"] == "mesh" and asked["results"][0]["id"] == "tall_post/01.off"
    # The query and its three results.
    assert Path("page.html").read_text().count("data:image/webp") >= 3


def test_an_encoder_takes_paths_and_arrays_of_points(home):
    encoder = vlkd_cli.load("run")
    file = home / "boxes" / "tall_post" / "00.off"
    cloud = clouds.cloud_of_file(str(file), 2048)[:, :3].astype(np.float64)
    by_path, by_points = encoder.encode(str(file), "mesh"), encoder.encode(cloud)
    np.testing.assert_allclose(by_path, by_points, atol=1e-5)
    assert encoder.encode([file, file]).shape == (2, 16)
    stacked = encoder.encode(np.stack([cloud, cloud[::-1]]))
    np.testing.assert_array_equal(stacked, encoder.encode([cloud, cloud[::-1]]))
    for item, message in (
        (cloud[:10], "have 10 points each, and the tower reads 32"),
        (home / "nothing.off", "No such file"),
        (np.zeros((40, 3)), "all of its points are the same"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.encode(item, "mesh")
    with pytest.raises(UserError, match="item 0 is a int; tower 'mesh' takes paths of meshes"):
        encoder.encode([3], "mesh")


def test_a_mesh_tower_is_not_written_as_onnx(capsys):
    pytest.importorskip("onnxruntime")
    assert leaves(["export", "run", "exported", "--format", "onnx"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "tower 'mesh' cannot be written as ONNX: its centers are found one after" in line
    assert not Path("exported").exists()


def test_broken_meshes_are_left_out_of_an_index_and_listed(home, capsys):
    write_boxes(home / "some", 2)
    (home / "some" / "tall_post" / "00.off").write_text("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n")
    assert leaves(["encode", "run", "some", "some.npy"]) == 0
    assert "1 of 4 items could not be encoded, e.g. tall_post/00.off: has no faces" in (
        capsys.readouterr().err
    )
    assert np.load("some.npy").shape == (3, 16)


def test_a_resumed_run_of_labeled_meshes_is_the_same_bit_for_bit(home, monkeypatch):
    base = recipe_of(home, {"mesh": small_tower(**HEAD)}, epochs=2, save_every_steps=3)
    base["data"]["per_class"] = 2
    base["distillers"] = [{"name": "supcon", "student": ["mesh", "mesh@second"]}]
    base["data"]["views"] = {"second": None}
    opened: list[str] = []
    original = clouds.cloud_of_file
    monkeypatch.setattr(
        clouds, "cloud_of_file", lambda path, points: opened.append(path) or original(path, points)
    )
    whole = train(home, base, "whole")
    # The first run of this module has stored the clouds.
    assert opened == []
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(_Killed):
            train(home, base, "cut")
    resumed = train(home, base, "cut", resume=str(home / "cut"))
    assert differences(final_state(whole)["towers"], final_state(resumed)["towers"]) == []


def test_meshes_without_class_folders_are_refused_where_labels_are_compared(home):
    files = sorted((home / "boxes").rglob("*.off"))
    (home / "flat").mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, home / "flat" / f"{number}.off")
    recipe = recipe_of(home, {"mesh": small_tower(**HEAD)})
    recipe["data"]["path"] = "flat"
    recipe["distillers"] = [{"name": "supcon"}]
    with pytest.raises(UserError, match="'supcon' needs labels, and the data has none"):
        train(home, recipe, "unlabeled")


def test_classes_of_one_mesh_each_are_refused_where_rows_are_compared(home):
    rows = [f"{file.relative_to(home)},k{n}" for n, file in enumerate(boxes_of(home))]
    (home / "alone.csv").write_text("\n".join(["file,kind", *rows]) + "\n")
    recipe = recipe_of(home, {"mesh": small_tower(**HEAD)})
    recipe["data"] = {"reader": "csv", "path": "alone.csv", "image": None, "mesh": "file"}
    recipe["data"] |= {"caption": None, "label": "kind", "workers": 0}
    recipe["distillers"] = [{"name": "supcon"}]
    with pytest.raises(UserError, match="compares samples of one class, and no class of the data"):
        train(home, recipe, "alone")
    recipe["distillers"] = [{"name": "margin_softmax", "num_classes": 8}]
    train(home, recipe, "proxies")


def boxes_of(home: Path) -> list[Path]:
    return sorted((home / "boxes").rglob("*.off"))


def test_images_find_meshes(home):
    names = write_photos(home / "photos", 8)
    pairs = zip(names, boxes_of(home), strict=True)
    rows = [f"photos/{photo},{mesh}" for photo, mesh in pairs]
    (home / "pairs.csv").write_text("\n".join(["photo,model", *rows]) + "\n")
    data = {"reader": "csv", "path": "pairs.csv", "image": "photo", "mesh": "model"}
    recipe = recipe_of(home, {"mesh": small_tower(**HEAD), "image": {**IMAGE, **HEAD}})
    recipe["data"] = {**data, "caption": None, "workers": 0}
    recipe["evals"] = [{"suite": "search", "relevant": "row", "data": {**data, "caption": None}}]
    run = train(home, recipe, "images")
    assert "eval/search.pairs.mrr@5" in read_metrics(run)
