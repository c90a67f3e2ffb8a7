from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.builders.hiding import gather, positions
from vlkd_cli.builders.openclip.builder import OpenCLIP
from vlkd_cli.builders.timm.builder import Timm
from vlkd_cli.builders.torchvision.builder import TorchVision
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble

SWIN = {"depths": [1, 1], "embed_dim": 8, "num_heads": [1, 2], "window_size": 2}
TEXT = {"layers": 1, "width": 16, "heads": 2, "context_length": 8, "vocab_size": 600}
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SIZES = {"layers": 2, "width": 32, "heads": 2, "image_size": 32, "patch_size": 8}
BUILDERS: dict[str, Any] = {
    "timm vit": lambda: Timm(model="vit_tiny_patch16_224", image_size=64, config=VIT),
    "timm vit, any size": lambda: Timm(
        model="test_vit", image_size=64, config={"dynamic_img_size": True}
    ),
    "timm swin": lambda: Timm(model="swin_tiny_patch4_window7_224", image_size=32, config=SWIN),
    "torchvision vit": lambda: TorchVision(model="vit_b_32", image_size=64),
    "openclip vit": lambda: OpenCLIP(config=SIZES),
}
GRIDS = {
    "timm vit": Grid(4, 4, 16),
    "timm vit, any size": Grid(4, 4, 16),
    "timm swin": Grid(4, 4, 8),
    "torchvision vit": Grid(2, 2, 32),
    "openclip vit": Grid(4, 4, 8),
}


@pytest.fixture(params=list(BUILDERS))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    built: Backbone = BUILDERS[request.param]().build("image").eval()
    assert built.grid(built.input.size_px) == GRIDS[request.param]  # type: ignore[union-attr]
    return built


def images_of(backbone: Backbone, count: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *backbone.input.size_px, generator=draw)  # type: ignore[union-attr]


def half_hidden(backbone: Backbone, count: int = 2) -> Tensor:
    """As many places in each row, not the same ones."""
    grid = backbone.grid(backbone.input.size_px)  # type: ignore[union-attr]
    assert grid is not None
    draw = torch.Generator().manual_seed(2)
    order = torch.rand(count, grid.num_places, generator=draw).argsort(1)
    return order < grid.num_places // 2


def embedded(backbone: Any, images: Tensor) -> Tensor:
    """What the first block of a plain vision transformer reads, before anything is dropped."""
    caught: list[Tensor] = []
    handle = backbone.places().dropping.register_forward_hook(
        lambda module, given, output: caught.append(output.clone())
    )
    backbone(images)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("name", [name for name in BUILDERS if "swin" not in name])
@pytest.mark.parametrize("masks", ["drop", "complement"])
def test_dropping_equals_the_network_on_gathered_tokens(name: str, masks: Any) -> None:
    torch.manual_seed(0)
    backbone: Any = BUILDERS[name]().build("image").eval()
    images, hidden = images_of(backbone), half_hidden(backbone)
    network = backbone.encoder
    every = embedded(backbone, images)
    kept = torch.stack(
        [
            row[shown]
            for row, shown in zip(every[:, 1:], hidden == (masks == "complement"), strict=True)
        ]
    )
    tokens = torch.cat([every[:, :1], kept], dim=1)
    if name.startswith("timm"):
        expected = network.norm(network.blocks(network.norm_pre(tokens)))
    elif name.startswith("torchvision"):
        expected = network.encoder.ln(network.encoder.layers(tokens))
    else:
        expected = network.ln_post(network.transformer(network.ln_pre(tokens)))
    found = backbone(images, hidden, masks).tokens
    assert found.prefix == 1
    torch.testing.assert_close(found.values, expected)


def test_replacing_nothing_equals_no_mask(backbone: Backbone) -> None:
    backbone.add_mask_token()
    images, nothing = images_of(backbone), torch.zeros_like(half_hidden(backbone))
    plain, masked = backbone(images), backbone(images, nothing, "replace")
    assert masked.feature.equal(plain.feature)
    assert masked.tokens.values.equal(plain.tokens.values)


def test_what_is_replaced_is_not_seen(backbone: Backbone) -> None:
    backbone.add_mask_token()
    images, hidden = images_of(backbone), half_hidden(backbone)
    grid = backbone.grid(backbone.input.size_px)  # type: ignore[union-attr]
    pixels = hidden.view(-1, 1, grid.rows, grid.columns)
    pixels = pixels.repeat_interleave(grid.patch_px, 2).repeat_interleave(grid.patch_px, 3)
    first = backbone(images, hidden, "replace").feature
    elsewhere = backbone(torch.where(pixels, images, 1 - images), hidden, "replace").feature
    beneath = backbone(torch.where(pixels, 1 - images, images), hidden, "replace").feature
    torch.testing.assert_close(beneath, first)
    assert not torch.allclose(elsewhere, first, atol=1e-3)


def test_the_mask_token_learns_and_no_state_of_the_library_changes(backbone: Backbone) -> None:
    names = list(backbone.encoder.state_dict())  # type: ignore[operator, union-attr]
    backbone.add_mask_token()
    feature = backbone(images_of(backbone), half_hidden(backbone), "replace").feature
    (feature * torch.linspace(-1, 1, feature.shape[1])).sum().backward()
    assert backbone.mask_token is not None and backbone.mask_token.grad is not None
    assert backbone.mask_token.grad.abs().sum() > 0
    assert list(backbone.encoder.state_dict()) == names  # type: ignore[operator, union-attr]
    assert [name for name in backbone.state_dict() if not name.startswith("encoder.")] == [
        "mask_token"
    ]


def test_a_mask_holds_for_one_call_even_where_it_fails(backbone: Backbone) -> None:
    backbone.add_mask_token()
    images, hidden = images_of(backbone), half_hidden(backbone)
    before = backbone(images).feature
    run = backbone.run

    def failing(*given: Any, **keys: Any) -> Any:
        run(*given, **keys)
        raise ArithmeticError

    backbone.run = failing  # type: ignore[method-assign]
    with pytest.raises(ArithmeticError):
        backbone(images, hidden, "replace")
    backbone.run = run  # type: ignore[method-assign]
    assert backbone(images).feature.equal(before)


def test_a_copy_hides_places_of_its_own(backbone: Backbone) -> None:
    backbone.add_mask_token()
    images, hidden = images_of(backbone), half_hidden(backbone)
    expected = backbone(images, hidden, "replace").feature
    copied = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied(images, hidden, "replace").feature, expected)


def test_rows_that_hide_different_numbers_cannot_be_dropped() -> None:
    backbone = BUILDERS["timm vit"]().build("image")
    hidden = half_hidden(backbone)
    hidden[0] = True
    with pytest.raises(ValueError, match="rows have between 0 and 8 positions"):
        backbone(images_of(backbone), hidden, "drop")


def test_positions_are_ascending_and_gathered_in_order() -> None:
    chosen = torch.tensor([[False, True, True, False], [True, False, False, True]])
    assert positions(chosen).tolist() == [[1, 2], [0, 3]]
    values = torch.arange(8.0).view(2, 4, 1)
    assert gather(values, positions(chosen)).flatten().tolist() == [1, 2, 4, 7]


def test_models_say_what_they_can_hide() -> None:
    assert BUILDERS["timm swin"]().build("image").hides == {"replace"}
    assert BUILDERS["openclip vit"]().build("image").hides == {"drop", "complement", "replace"}
    assert Timm(model="resnet10t").build("image").hides == frozenset()
    dropping = OpenCLIP(config={**SIZES, "patch_dropout": 0.5}).build("image")
    assert dropping.hides == {"replace"}
    spec = TowerSpec.model_validate(
        {"builder": "torchvision", "model": "resnet18", "masks": "drop"}
    )
    with pytest.raises(
        RecipeError,
        match="builder 'torchvision', model 'resnet18' cannot hide positions in this way",
    ):
        assemble("image", spec)


def test_the_grid_follows_the_size_and_a_size_that_is_refused_is_named() -> None:
    vit = BUILDERS["timm vit"]().build("image")
    with pytest.raises(RecipeError, match="does not take pictures of 96 x 96 pixels"):
        vit.grid((96, 96))
    free = BUILDERS["timm vit, any size"]().build("image")
    assert free.grid((96, 32)) == Grid(6, 2, 16)
    resnet = TorchVision(model="resnet18", image_size=64).build("image")
    assert resnet.grid((64, 64)) == Grid(2, 2, 32) and resnet.grid((128, 96)) == Grid(4, 3, 32)
    text = OpenCLIP(config=TEXT).build("text")
    assert text.grid((64, 64)) is None
    assert vit.training and resnet.training


def test_one_run_gives_the_feature_and_the_tokens(backbone: Backbone) -> None:
    images = images_of(backbone)
    both, alone = backbone(images), backbone(images, tokens=False)
    torch.testing.assert_close(both.feature, alone.feature)
    grid = backbone.grid(backbone.input.size_px)  # type: ignore[union-attr]
    assert both.tokens.values.shape[1] == grid.num_places + both.tokens.prefix
