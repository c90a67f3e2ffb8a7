from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone, Encoded, Tokens
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.errors import RecipeError
from vlkd_cli.heads.linear import LinearHead
from vlkd_cli.poolers import GeMPooler
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.schema import LastLayers
from vlkd_cli.towers.freezing import Learns, choose_parameters, named_parameters
from vlkd_cli.towers.tower import Tower


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.bn(self.conv(images))


class SmallNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.layers = nn.Sequential(Block(), Block(), Block())
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.layers(self.stem(images)))


class SmallBackbone(Backbone):
    modality = "image"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallNetwork()
        self.width = self.token_width = 4
        self.input = ImageInput(size_px=(8, 8))

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        values = self.encoder(inputs).flatten(2).transpose(1, 2)
        return Encoded(values.mean(1), Tokens.of_places(values))

    def layers(self) -> list[list[str]]:
        return find_layers(self.encoder)


def learning(learns: Learns, *, head: bool = True, pooler: bool = False) -> list[str]:
    backbone = SmallBackbone()
    parts = (
        backbone,
        GeMPooler(4) if pooler else None,
        {"head": LinearHead(4, width=2)} if head else {},
    )
    choose_parameters("image", *parts, learns)
    return [name for name, parameter in named_parameters(*parts).items() if parameter.requires_grad]


def tower(learns: Learns, *, head: bool = True, pooler: bool = False) -> Tower:
    torch.manual_seed(0)
    backbone = SmallBackbone()
    parts = (GeMPooler(4) if pooler else None, LinearHead(4, width=2) if head else None)
    choose_parameters(
        "image", backbone, parts[0], {} if parts[1] is None else {"head": parts[1]}, learns
    )
    return Tower("image", backbone, pooler=parts[0], head=parts[1])


def test_all_none_and_head_mean_what_they_say() -> None:
    assert len(learning("all")) == 18
    assert learning("none") == []
    assert learning("head") == ["head.linear.weight", "head.linear.bias"]
    assert learning("head", pooler=True)[0] == "pooler.p"


def test_patterns_choose_and_exceptions_take_away() -> None:
    assert learning(["layers.2.*", "!*.bn.*"]) == ["layers.2.conv.weight", "layers.2.conv.bias"]
    assert learning(["layers.2", "!*.bn"]) == ["layers.2.conv.weight", "layers.2.conv.bias"]
    assert learning(["head.*", "stem.bias"]) == [
        "stem.bias",
        "head.linear.weight",
        "head.linear.bias",
    ]
    assert not any(".bn." in name for name in learning(["!*.bn.*"]))
    assert len(learning(["!*.bn.*"])) == 12


def test_the_last_layers_learn_with_what_follows_them() -> None:
    names = learning(LastLayers(last=1))
    assert {name.split(".")[0] for name in names} == {"layers", "norm", "head"}
    assert {name.split(".")[1] for name in names if name.startswith("layers")} == {"2"}


@pytest.mark.parametrize(
    ("learns", "head", "message"),
    [
        (
            ["leyers.2.*"],
            True,
            r"pattern 'leyers\.2\.\*' matches no parameter\. Did you mean 'layers\.2",
        ),
        (["stam.*"], True, r"matches no parameter\. Did you mean 'stem"),
        (["qqqq"], True, r"Names begin with: stem, layers, norm, head\."),
        ([], True, r"`train` is an empty list"),
        (["stem", "!stem"], True, r"leave nothing to train"),
        ("head", False, r"`train: head`, but it has no head\. Add `head:"),
        (LastLayers(last=4), True, r"`train: \{last: 4\}`, but the backbone has 3 layers"),
    ],
)
def test_a_choice_without_effect_is_an_error(
    learns: Sequence[str], head: bool, message: str
) -> None:
    with pytest.raises(RecipeError, match=r"^tower 'image': .*" + message):
        learning(learns, head=head)


def test_batch_norms_of_frozen_parts_keep_their_statistics() -> None:
    partly = tower(["layers.2.*", "head.*"]).train()
    before = {
        name: buffer.clone()
        for name, buffer in partly.named_buffers()
        if name.endswith("running_mean")
    }
    partly(torch.randn(4, 3, 8, 8))
    moved = [
        name
        for name, buffer in partly.named_buffers()
        if name in before and not buffer.equal(before[name])
    ]
    assert moved == ["backbone.encoder.layers.2.bn.running_mean"]


def test_frozen_statistics_are_used_and_stay_while_everything_is_trained() -> None:
    moved = tower("all").train()
    images = 3 * torch.randn(4, 3, 8, 8) + 1
    moved(images)
    head = nn.Sequential(nn.BatchNorm1d(4), LinearHead(4, width=2))
    head.width = 2  # type: ignore[assignment]
    frozen = Tower("image", moved.encoder, head=head, freeze_batch_norm_stats=True)
    expected = frozen.eval()(images, ("backbone",))["backbone"]
    before = {name: buffer.clone() for name, buffer in frozen.named_buffers()}
    outputs = frozen.train()(images, ("backbone", "head"))
    assert outputs["backbone"].equal(expected)
    outputs["head"].square().sum().backward()
    changed = [name for name, buffer in frozen.named_buffers() if not buffer.equal(before[name])]
    assert len(changed) == 3 and all(name.startswith("head.0.") for name in changed)
    assert all(parameter.grad is not None for parameter in frozen.parameters())
    # The tower may have them of another one (`init`), so they are in checkpoints.
    assert "backbone.encoder.norm.running_var" in frozen.trainable_state()


def test_layer_decay_counts_from_the_head() -> None:
    built = tower("all")
    assert built.num_layers == 4
    layers = {name: built.layer_of(name) for name, _ in built.named_parameters()}
    assert layers["backbone.encoder.stem.weight"] == 0
    assert layers["backbone.encoder.layers.1.bn.bias"] == 1
    assert layers["backbone.encoder.norm.weight"] == 2
    assert layers["head.linear.weight"] == 3
    assert tower("all", head=False).num_layers == 3


def test_a_frozen_backbone_is_outside_the_module_tree_and_still_moves() -> None:
    built = tower("head").train()
    assert [name for name, _ in built.named_parameters()] == [
        "head.linear.weight",
        "head.linear.bias",
    ]
    assert set(built.state_dict()) == {"head.linear.weight", "head.linear.bias"}
    assert built.backbone_is_frozen and built.cacheable and not built.is_frozen
    assert not any(module.training for module in built.encoder.modules())
    built.double()
    assert built.encoder.encoder.stem.weight.dtype == torch.float64
    assert not built.features(torch.randn(2, 3, 8, 8, dtype=torch.float64)).requires_grad
    assert tower("none").is_frozen
    assert built.count_parameters() == (4 * 4 + 3 * 28 + 8 + 10, 10)


def test_features_are_stored_only_where_nothing_below_the_head_learns() -> None:
    assert not tower("head", pooler=True).cacheable
    assert tower("none", pooler=True).cacheable
    with pytest.raises(ValueError, match="is trained below its head"):
        tower("all").cached()


def test_a_tower_of_stored_features_shares_head_and_digest() -> None:
    built = tower("head")
    stored = built.cached()
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(stored.encode(built.features(images)), built.encode(images))
    assert stored.head is built.head
    assert stored.digest() == built.digest()
    assert set(stored.trainable_state()) == set(built.trainable_state())
    stored.train().double()
    # What nothing runs is not moved either.
    assert stored.encoder.encoder.stem.weight.dtype == torch.float32


def test_uint8_images_are_standardized_by_the_tower() -> None:
    built = tower("none", head=False)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = ImageInput(size_px=(8, 8))
    by_hand = (images / 255 - torch.tensor(expected.mean).view(1, 3, 1, 1)) / torch.tensor(
        expected.std
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(built.encode(images), built.encode(by_hand), rtol=1e-4, atol=1e-5)


def test_the_digest_follows_weights_and_settings() -> None:
    first, second = tower("all"), tower("all")
    assert first.digest() == second.digest()
    with torch.no_grad():
        second.encoder.encoder.stem.weight[0, 0] += 1
    assert first.digest() != second.digest()
    second = tower("all")
    second.encoder.settings = "other"
    assert first.digest() != second.digest()
    assert tower("all", pooler=True).digest() != first.digest()
    assert tower("none").digest() == first.digest()


def test_a_checkpoint_holds_trainable_parameters_and_nothing_frozen() -> None:
    partly = tower(["layers.2.*", "head.*"])
    names = set(partly.trainable_state())
    assert "backbone.encoder.layers.2.bn.running_var" in names
    assert not any("stem" in name or "layers.0" in name for name in names)
    other = tower(["layers.2.*", "head.*"])
    with torch.no_grad():
        partly.head.linear.bias += 1
    other.load_trainable_state(partly.trainable_state())
    assert other.head.linear.bias.equal(partly.head.linear.bias)


def test_a_copy_is_trained_apart_but_shares_the_frozen_backbone() -> None:
    import copy

    built = tower("head")
    copied = copy.deepcopy(built)
    assert copied.encoder is built.encoder
    assert copied.head is not built.head
