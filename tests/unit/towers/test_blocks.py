from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.blocks import blocks_of, checkpoint_activations
from vlkd_cli.towers.tower import Tower

SIZE = {"image_size": 32}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
VISION: dict[str, dict[str, Any]] = {
    "timm": {
        "builder": "timm",
        "model": "vit_tiny_patch16_224",
        **SIZE,
        "config": {**VIT, "proj_drop_rate": 0.3, "drop_path_rate": 0.3},
    },
    "openclip": {
        "builder": "openclip",
        "config": {"layers": 3, "width": 32, "heads": 2, "image_size": 32, "patch_size": 8},
    },
    "torchvision": {"builder": "torchvision", "model": "resnet18", **SIZE},
}


def tower_of(keys: dict[str, Any]) -> Tower:
    torch.manual_seed(0)
    return assemble("image", TowerSpec.model_validate(keys)).train()


def step(tower: Tower) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """Gradients, buffers and stored bytes of one step."""
    stored: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = tower.encode(images).square().mean()
    for parameter in tower.parameters():
        stored.pop(parameter.untyped_storage().data_ptr(), None)
    loss.backward()
    gradients = [each.grad for each in tower.parameters() if each.grad is not None]
    return gradients, dict(tower.named_buffers()), sum(stored.values())


@pytest.mark.parametrize("library", VISION)
def test_recomputed_activations_give_the_same_gradients_and_statistics_in_less_memory(library):
    stored, recomputed = tower_of(VISION[library]), tower_of(VISION[library])
    names = list(recomputed.state_dict())
    assert checkpoint_activations(recomputed.encoder) >= 3
    assert list(recomputed.state_dict()) == names
    (gradients, buffers, size), (others, other_buffers, smaller) = step(stored), step(recomputed)
    assert len(gradients) > 10
    assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert all(torch.equal(buffers[name], other_buffers[name]) for name in buffers)
    assert smaller < 0.6 * size


def test_blocks_are_the_layers_of_a_backbone_and_no_block_is_in_another():
    backbone = tower_of(VISION["openclip"]).encoder
    blocks = blocks_of(backbone)
    assert len(blocks) >= 3
    inside = {id(part) for block in blocks for part in list(block.modules())[1:]}
    assert not any(id(block) in inside for block in blocks)


def test_a_copy_of_a_recomputing_tower_has_blocks_of_its_own():
    tower = tower_of(VISION["openclip"])
    checkpoint_activations(tower.encoder)
    other = copy.deepcopy(tower)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
    assert all(gradient.abs().sum() > 0 for gradient in step(other)[0][:1])
    assert all(parameter.grad is None for parameter in tower.parameters())
