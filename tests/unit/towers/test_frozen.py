from __future__ import annotations

from typing import Any

import pytest
import torch

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.tower import Tower

IMAGE: dict[str, Any] = {
    "builder": "timm",
    "model": "vit_tiny_patch16_224",
    "image_size": 32,
    "config": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2},
}
TEXT = {
    "builder": "openclip",
    "config": {"layers": 2, "width": 64, "heads": 2, "context_length": 16, "vocab_size": 600},
}
RESNET = {"builder": "torchvision", "model": "resnet18", "image_size": 32}
KINDS = {"image": IMAGE, "text": TEXT, "resnet_image": RESNET}


def tower_of(kind: str, **keys: Any) -> Tower:
    torch.manual_seed(0)
    return assemble(kind, TowerSpec.model_validate({**KINDS[kind], "train": "none", **keys}))


def inputs_of(tower: Tower) -> Any:
    if tower.modality == "text":
        return tower.input(["a dog", "two cats on a mat", "snow"])
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def stored_bytes(tower: Tower) -> int:
    return sum(each.numel() * each.element_size() for each in tower.encoder.parameters())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_tower_in_16_bits_takes_half_the_memory_and_gives_nearly_the_same(kind, dtype):
    full, narrow = tower_of(kind), tower_of(kind, dtype=dtype)
    assert stored_bytes(narrow) < 0.52 * stored_bytes(full)
    inputs = inputs_of(full)
    for output in ("head", "tokens") if kind == "image" else ("head",):
        expected, found = full.encode(inputs, output), narrow.encode(inputs, output)
        assert found.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
        assert cosine.min() > 0.999
        assert not found.equal(expected)


def test_the_digest_and_so_the_key_of_cached_features_depends_on_the_type():
    digests = {
        dtype: tower_of("image", **({} if dtype == "fp32" else {"dtype": dtype})).digest()
        for dtype in ("fp32", "bf16", "fp16")
    }
    assert len(set(digests.values())) == 3
    assert digests["bf16"] == tower_of("image", dtype="bf16").digest()


def test_a_head_on_a_frozen_tower_in_16_bits_is_trained_in_float32():
    tower = tower_of("image", dtype="bf16", train="head", head={"name": "linear", "width": 8})
    tower.encode(inputs_of(tower)).sum().backward()
    assert {each.dtype for each in tower.head.parameters()} == {torch.float32}
    assert all(each.grad is not None for each in tower.head.parameters())


def test_a_backbone_that_is_trained_stays_in_float32():
    with pytest.raises(RecipeError, match="dtype: bf16: its backbone is trained"):
        tower_of("image", dtype="bf16", train="all")
