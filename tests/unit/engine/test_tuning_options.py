"""The options of a pretrained model that is tuned for search: pooler, head, freezing, image size,
length of texts; each has its effect on the tower of a recipe."""

from __future__ import annotations

import pytest
import torch

from tests.support.encoders import SENTENCES, write_encoder
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.towers.tower import Tower

GEM = "pooler: {name: gem, p: 4, eps: 1.0e-3, learnable: false}"
MLP = "head: {name: mlp, layers: 3, hidden: 16, width: 8}"


def tower_of(section: str) -> Tower:
    recipe = parse_recipe(f"towers:\n  {section}\n", "r.yaml")
    towers = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    (tower,) = towers.values()
    assert isinstance(tower, Tower)
    return tower.eval()


@pytest.fixture(scope="module")
def frozen() -> Tower:
    own = f"like: resnet-base, pretrained: false, image_size: 64, train: head, {GEM}, {MLP}"
    return tower_of(f"image: {{{own}}}")


def test_a_frozen_model_trains_a_head_of_three_layers_and_nothing_else(frozen: Tower) -> None:
    trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("head.") for name in trained)
    linear = [part for part in frozen.head.modules() if isinstance(part, torch.nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linear] == [
        (2048, 16),
        (16, 16),
        (16, 8),
    ]
    assert frozen.width == 8


def test_gem_takes_its_power_and_floor_over_the_last_map(frozen: Tower) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = frozen(images, ("backbone", "tokens"))
    tokens = found["tokens"]
    assert tokens.shape == (2, 4, 2048)  # 2 x 2 positions: images are 64 px wide
    expected = tokens.clamp(min=1e-3).pow(4).mean(1).pow(0.25)
    torch.testing.assert_close(found["backbone"], expected)


def test_the_classifier_is_removed_where_there_is_no_head() -> None:
    tower = tower_of("image: {like: resnet-base, pretrained: false, image_size: 32}")
    assert tower.width == 2048
    assert not [name for name, _ in tower.named_parameters() if "fc" in name or "head" in name]


def test_texts_are_cut_to_the_length_that_is_set(tmp_path) -> None:
    model = write_encoder(tmp_path / "model")
    tower = tower_of(f"text: {{builder: huggingface, model: {model}, max_length: 5, {MLP}}}")
    assert tower.input(SENTENCES)["input_ids"].shape == (3, 5) and tower.width == 8
