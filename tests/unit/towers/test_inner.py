"""Outputs of inner layers by address, and their gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.recipes import problems
from tests.support.vision_types import VISION_TYPES
from tests.unit.engine.recipes import IMAGE, TEXT, final_state, tiny_recipe, train
from vlkd_cli.distillers.layer_distance import LayerDistance
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.towers.tower import Tower

BERT = {"builder": "huggingface", "tokenizer": "trained"}
SMALL = {"layers": 3, "width": 16, "heads": 2}
TIMM = {
    "builder": "timm",
    "model": "vit_tiny_patch16_224",
    "image_size": 32,
    "config": {"depth": 3, "embed_dim": 16, "num_heads": 2, "patch_size": 8},
}
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def built(name: str, section: dict[str, Any]) -> Tower:
    towers = build_towers(
        parse_recipe(json.dumps({"towers": {name: section}}), "r.yaml"),
        captions=lambda: ["a red disc", "a blue square"],
        run_folder=None,
        cache_dir=None,
    )
    tower = towers[name].eval()
    assert isinstance(tower, Tower)
    return tower


@pytest.mark.parametrize(
    ("section", "block"),
    [
        ({**IMAGE, "config": {**IMAGE["config"], "layers": 3}}, "transformer.resblocks.1"),
        (TIMM, "blocks.1"),
    ],
    ids=["openclip", "timm"],
)
def test_a_layer_is_what_its_block_gives(section: dict[str, Any], block: str) -> None:
    tower = built("image", section)
    seen: list[torch.Tensor] = []
    module = tower.encoder.get_submodule(f"encoder.{block}")
    module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    wanted = ("layers.2", "layers.2.pooled", "layers.0", "backbone", "tokens")
    with torch.no_grad():
        found = tower(PICTURES, wanted)
    assert len(seen) == 1
    assert found["layers.2"].equal(seen[0][:, 1:])
    assert found["layers.2.pooled"].equal(seen[0][:, 0])
    assert found["layers.0"].shape == found["tokens"].shape
    torch.testing.assert_close(found["backbone"], tower.features(PICTURES))
    assert tower.width_of("layers.2") == tower.width_of("layers.2.pooled") == 16


def test_a_stage_of_a_convolutional_network_is_its_map() -> None:
    tower = built("image", {"builder": "torchvision", "model": "resnet18", "image_size": 64})
    with torch.no_grad():
        found = tower(torch.zeros(2, 3, 64, 64), ("layers.3", "layers.3.pooled"))
    assert found["layers.3"].shape == (2, 64, 128) and tower.width_of("layers.3") == 128
    torch.testing.assert_close(found["layers.3.pooled"], found["layers.3"].mean(1))


def test_layers_are_blocks_in_order_where_lists_are_nested() -> None:
    config = {"type": "segformer", **VISION_TYPES["segformer"], "depths": [2, 1, 1, 1]}
    tower = built("image", {"builder": "huggingface", "config": config})
    seen: list[torch.Tensor] = []
    second = tower.encoder.get_submodule("encoder.encoder.block.0.1")
    second.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        found = tower(PICTURES, ("layers.2", "layers.5.pooled"))
    assert found["layers.2"].equal(seen[0]) and found["layers.5.pooled"].shape == (2, 16)
    with pytest.raises(RecipeError, match="it has 5 layers"):
        tower(PICTURES, ("layers.6",))


@pytest.mark.parametrize("section", [{**TEXT, "config": SMALL}, {**BERT, "config": SMALL}])
def test_padding_changes_no_layer_of_a_text(section: dict[str, Any]) -> None:
    tower = built("text", section)
    alone, beside = (
        tower(tower.input(texts), ("layers.2.pooled", "layers.2"))
        for texts in (["a red disc"], ["a red disc", "a red disc on a blue blue square"])
    )
    torch.testing.assert_close(alone["layers.2.pooled"], beside["layers.2.pooled"][:1])
    places = alone["layers.2"].shape[1]
    torch.testing.assert_close(alone["layers.2"], beside["layers.2"][:1, :places])
    assert not beside["layers.2"][0, places:].any()


def test_a_layer_beyond_the_tower_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r"tower 'image': layers\.2: it has 1 layers"):
        built("image", IMAGE).width_of("layers.2")


def test_the_distance_is_that_of_resized_places() -> None:
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 16, 3)
    distance = LayerDistance()
    distance.setup(3, 3)
    grid = student.transpose(1, 2).unflatten(2, (2, 2))
    larger = torch.nn.functional.interpolate(grid, (4, 4), mode="bilinear")
    expected = (larger.flatten(2).transpose(1, 2) - teacher).square().mean()
    torch.testing.assert_close(distance(student, teacher), expected)
    with pytest.raises(RecipeError, match="do not form square grids"):
        distance(student[:, :3], teacher)


def test_widths_that_differ_need_the_regressor() -> None:
    with pytest.raises(RecipeError, match="Set regressor: auto"):
        LayerDistance(regressor="none").setup(3, 4)
    same = LayerDistance()
    same.setup(3, 3)
    assert not list(same.parameters())


def test_a_student_learns_from_layers_of_another_width_and_grid(tmp_path: Path) -> None:
    teacher = {**IMAGE, "config": {**IMAGE["config"], "layers": 2, "width": 24, "patch_size": 4}}
    recipe = tiny_recipe(
        towers={"image": IMAGE, "text": TEXT, "teacher_image": {**teacher, "train": "none"}},
        distillers=[
            {"name": "infonce", "student": "image", "teacher": "text"},
            *(
                {
                    "name": "layer_distance",
                    "student": f"image.layers.1{end}",
                    "teacher": f"teacher_image.layers.2{end}",
                }
                for end in ("", ".pooled")
            ),
        ],
        train={"steps": 2},
    )
    state = final_state(train(tmp_path, recipe))
    assert set(state["distillers"]) >= {
        "layer_distance.map.weight",
        "layer_distance_2.map.weight",
    }


def test_addresses_of_layers_are_checked_without_torch() -> None:
    base = """\
        towers:
          image: {builder: torchvision, model: resnet18}
          text: {builder: openclip, config: {layers: 2, width: 64, heads: 2}}
          teacher_image: {builder: torchvision, model: resnet18, train: none}
        distillers:
          - {name: infonce, student: image, teacher: text}
          - {name: layer_distance, student: image.layers.2, teacher: teacher_image.layers.2}
        data: {reader: shapes}
        """
    assert problems(base) == []
    rows = "distillers.1.teacher=teacher_image.layers.2.pooled"
    assert problems(base, ["distillers.1.name=infonce"])
    assert problems(base, ["towers.teacher_image.cache={draws: 2}"])
    assert problems(base, ["distillers.1.student=image.layers.x"])
    assert problems(base, [rows, "distillers.1.student=image.layers.2.pooled"]) == []
