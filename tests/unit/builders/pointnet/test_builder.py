"""The builder: what it lists, what it refuses, and its weights in a file."""

from __future__ import annotations

import pytest
import torch

import vlkd_cli
from tests.support.meshes import small_tower
from vlkd_cli import console
from vlkd_cli.builders.pointnet.builder import PointNet
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.export import export_tower
from vlkd_cli.towers.exported import load_exported


def tower(**keys):
    return assemble("mesh", TowerSpec.model_validate(small_tower(**keys)))


def test_the_models_are_listed_with_widths_of_the_network():
    rows = {row.name: row for row in PointNet.list_models("mesh")}
    built = PointNet(model="msg").build("mesh")
    assert set(rows) == {"ssg", "msg"}
    assert rows["msg"].width == built.width == 1024
    assert rows["msg"].parameters == sum(p.numel() for p in built.parameters())
    assert PointNet.list_models("image") == [] == PointNet.list_models(pretrained_only=True)
    assert [row["output_dim"] for row in vlkd_cli.describe_models("mesh-to-mesh")] == [512]


def test_normals_are_read_where_the_tower_asks_for_them():
    torch.manual_seed(0)
    reads, ignores = tower(normals=True), tower()
    assert reads.input.normals and not ignores.input.normals
    points = torch.rand(2, 32, 6)
    assert reads.encode(points).shape == (2, 51)
    other = torch.cat([points[:, :, :3], -points[:, :, 3:]], 2)
    assert not reads.eval().encode(points).equal(reads.encode(other))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"points": 100}, "512 centers of the first stage are more than the 100 points"),
        ({"pretrained": True}, "pretrained: true: there is nothing to download"),
    ],
)
def test_mistakes_are_one_line(keys, message):
    with pytest.raises(RecipeError, match=message):
        PointNet(**keys).build("mesh")


def test_balls_that_hold_their_center_alone_are_reported(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(console, "warn_once", lines.append)
    PointNet(points=128, config={"centers": [64, 16], "radii": [0.2, 0.41]}).build("mesh")
    assert "a ball of radius 0.2 holds 1.3 on average" in lines.pop()
    PointNet(points=256, config={"centers": [64, 16], "radii": [0.4, 0.82]}).build("mesh")
    assert lines == []


def test_poolers_read_the_centers_of_the_second_stage():
    pooled = tower(pooler={"name": "max"})
    assert pooled.feature_width == pooled.encoder.token_width
    assert pooled.encode(torch.rand(2, 32, 3)).shape == (2, pooled.feature_width)


def test_an_exported_tower_gives_the_same_features(tmp_path):
    torch.manual_seed(3)
    original = tower(head={"name": "linear", "width": 8}).eval()
    folder = tmp_path / "mesh"
    folder.mkdir()
    export_tower(original, folder, folder)
    points = torch.rand(2, 32, 3)
    assert load_exported(folder).eval().encode(points).equal(original.encode(points))
