from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.meshes import write_boxes
from tests.unit.engine.recipes import tiny_recipe, write_recipe
from tests.unit.engine.test_broken_data import shards
from vlkd_cli.data.readers.excluded import excluded_names
from vlkd_cli.engine.check_data import check_data
from vlkd_cli.errors import UserError


def recipe(folder: Path, **keys: Any) -> str:
    return write_recipe(folder, {**tiny_recipe(), "data": {"workers": 0, **keys}})


def test_broken_samples_are_listed_as_exclude_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shards(tmp_path / "data", [[0, 1, 2], [3, 4, 5]], broken={1, 5})
    output = tmp_path / "broken.csv"
    keys: dict[str, Any] = {"reader": "webdataset", "path": path}
    check_data(recipe(tmp_path, **keys), [], output)
    names = [f"{tmp_path}/data/00000.tar:0001", f"{tmp_path}/data/00001.tar:0005"]
    assert excluded_names(str(output)) == names
    message = capsys.readouterr().out
    assert "2 of 6 samples cannot be read" in message and f"data.exclude: {output}" in message
    other = tmp_path / "other.csv"
    check_data(recipe(tmp_path, **keys, exclude=str(output)), [], other)
    assert other.read_text() == "sample,reason\n"
    assert "All 4 samples can be read" in capsys.readouterr().out


def test_broken_meshes_are_those_of_a_mesh_tower(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    write_boxes(tmp_path / "models", 2)
    (tmp_path / "models" / "flat_slab" / "00.off").write_text("OFF\n1 0 0\n0 0 0\n")
    keys = {"reader": "meshes", "path": str(tmp_path / "models"), "workers": 0}
    towers = {"mesh": {"builder": "pointnet", "points": 64}}
    distillers = [{"name": "supcon"}]
    name = write_recipe(
        tmp_path, {"towers": towers, "data": keys, "distillers": distillers, "train": {"steps": 1}}
    )
    check_data(name, [], tmp_path / "broken.csv")
    assert excluded_names(str(tmp_path / "broken.csv")) == [f"{tmp_path}/models/flat_slab/00.off"]


def test_streams_and_recipes_without_data_are_refused(tmp_path: Path) -> None:
    path = shards(tmp_path / "data", [[0, 1, 2]])
    stream = recipe(tmp_path, reader="webdataset", path=path, stream=True, samples_per_epoch=3)
    with pytest.raises(UserError, match="its data is a stream"):
        check_data(stream, [], tmp_path / "x.csv")
    towers = write_recipe(tmp_path, {"towers": tiny_recipe()["towers"]}, "towers")
    with pytest.raises(UserError, match="has no `data:` to check"):
        check_data(towers, [], tmp_path / "x.csv")
