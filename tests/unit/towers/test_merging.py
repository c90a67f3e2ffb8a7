"""Towers with merged adapters give the same vectors; the one to be averaged is a copy."""

from __future__ import annotations

import pytest
import torch

from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.merging import merged_tower, plain
from vlkd_cli.towers.tower import Tower


def tower(**keys: object) -> Tower:
    torch.manual_seed(0)
    section = {
        "builder": "openclip",
        "config": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "heads": 2},
        "head": {"name": "linear", "width": 8},
        **keys,
    }
    made = assemble("image", TowerSpec.model_validate(section)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:  # LoRA starts as the plain tower
                parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("merge", [merged_tower, plain])
def test_a_merged_tower_gives_the_same_vectors_without_an_adapter(merge):
    adapted = tower(adapter={"name": "lora", "rank": 2})
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = adapted.encode(images)
        found = merge(adapted)
        torch.testing.assert_close(found.encode(images), before, rtol=1e-5, atol=1e-6)
        assert not found.encoder.adapter_name and adapted.encoder.adapter_name


def test_changing_a_tower_that_is_averaged_leaves_the_original_as_it_is():
    adapted = tower(adapter={"name": "lora", "rank": 2})
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = adapted.encode(images)
        for parameter in plain(adapted).parameters():
            parameter.zero_()
        assert torch.equal(adapted.encode(images), before)


@pytest.mark.parametrize("merge", [merged_tower, plain])
def test_a_tower_without_an_adapter_is_itself(merge):
    whole = tower()
    assert merge(whole) is whole
