from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.ranks import run_on_ranks
from vlkd_cli.builders.backbone import Backbone, Encoded
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.errors import RecipeError
from vlkd_cli.heads.linear import LinearHead
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.recipe.types import Progress, Schedule
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.outputs import Head, Source
from vlkd_cli.towers.tower import Tower


class Noisy(Backbone):
    """A batch norm, a dropout and a linear layer."""

    modality = "image"

    def __init__(self) -> None:
        super().__init__()
        self.input = ImageInput(size_px=(2, 2))
        self.width = 4
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(12, 4)

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        return Encoded(self.linear(self.dropout(self.norm(inputs)).flatten(1)), None)


def noisy_tower() -> Tower:
    torch.manual_seed(0)
    return Tower(
        "image",
        Noisy(),
        heads={
            "head": Head(LinearHead(4, width=2, dropout=0.5)),
            "project": Head(LinearHead(4, width=3)),
            "predict": Head(LinearHead(3, width=3), (Source("project"),)),
        },
    )


def images(seed: int = 0, count: int = 8) -> Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_dropout_is_off_in_training_and_batch_norms_work_on_the_batch() -> None:
    follower = MomentumTower(noisy_tower(), follows="image").train()
    assert follower.training
    batch = images()
    first = follower(batch)["head"]
    assert follower(batch)["head"].equal(first)
    norm = follower.tower.encoder.norm
    assert norm.num_batches_tracked == 2 and norm.running_mean.abs().sum() > 0  # type: ignore[union-attr]
    follower.eval()
    assert not torch.allclose(follower(batch)["head"], first)
    assert norm.num_batches_tracked == 2


def test_stochastic_depth_is_off_in_training() -> None:
    spec = {
        "builder": "timm",
        "model": "vit_tiny_patch16_224",
        "image_size": 32,
        "config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "drop_path_rate": 0.5},
    }
    follower = MomentumTower(assemble("image", TowerSpec.model_validate(spec)), follows="image")
    batch = torch.rand(8, 3, 32, 32)
    assert follower.train()(batch)["head"].equal(follower(batch)["head"])


def test_batch_norms_that_are_held_in_the_followed_tower_are_held_here() -> None:
    tower = noisy_tower()
    tower.encoder.norm.requires_grad_(False)  # type: ignore[union-attr]
    tower = Tower("image", tower.encoder, heads=tower.parts())
    frozen = Tower("image", noisy_tower().encoder, freeze_batch_norm_stats=True)
    for followed in (tower, frozen):
        follower = MomentumTower(followed, follows="image").train()
        follower(images())
        assert follower.tower.encoder.norm.num_batches_tracked == 0  # type: ignore[union-attr]


def test_parameters_are_matched_by_name_after_heads_are_left_out() -> None:
    tower = noisy_tower()
    follower = MomentumTower(tower, follows="image", momentum=0.75, outputs=["project"])
    assert list(follower.tower.graph.links) == ["project"]
    before = {name: value.clone() for name, value in follower.tower.named_parameters()}
    left_out = ("head.", "heads.predict.")
    assert set(before) == {
        name for name, _ in tower.named_parameters() if not name.startswith(left_out)
    }
    with torch.no_grad():
        for number, parameter in enumerate(tower.parameters()):
            parameter.add_(number)
    follower.follow(tower, Progress())
    for name, own in follower.tower.named_parameters():
        expected = 0.75 * before[name] + 0.25 * tower.get_parameter(name)
        torch.testing.assert_close(own, expected)


def test_momentum_follows_its_schedule() -> None:
    tower = noisy_tower()
    schedule = Schedule(linear=(0.0, 1.0))
    follower = MomentumTower(tower, follows="image", momentum=schedule)
    with torch.no_grad():
        tower.head.linear.bias.add_(1)
    follower.follow(tower, Progress(4, 5, 5))
    assert follower.tower.head.linear.bias.equal(tower.head.linear.bias - 1)
    follower.follow(tower, Progress(0, 5, 5))
    assert follower.tower.head.linear.bias.equal(tower.head.linear.bias)


def test_its_name_and_sections_are_its_own() -> None:
    follower = MomentumTower(noisy_tower(), follows="image", name="image_slow")
    assert follower.tower.name == "image_slow" and follower.width_of("project") == 3
    assert not any(parameter.requires_grad for parameter in follower.parameters())


VIT: dict[str, Any] = {
    "builder": "timm",
    "model": "vit_tiny_patch16_224",
    "image_size": 32,
    "config": {"depth": 1, "embed_dim": 32, "num_heads": 2},
}


def test_it_hides_places_as_its_own_masks_say() -> None:
    torch.manual_seed(0)
    tower = assemble("image", TowerSpec.model_validate({**VIT, "masks": "drop"}))
    twin = MomentumTower(tower, follows="image", momentum=0.0, masks="complement").eval()
    hidden = torch.tensor([[True, False, True, False]] * 2)
    batch = torch.rand(2, 3, 32, 32)
    found = twin(batch, ("tokens",), hidden=hidden)["tokens"]
    expected = tower.eval()(batch, ("tokens",), hidden=~hidden)["tokens"]
    torch.testing.assert_close(found, expected)


def test_what_it_cannot_do_is_one_line() -> None:
    with pytest.raises(RecipeError, match="'slow': masks: drop: its encoder cannot hide positions"):
        MomentumTower(noisy_tower(), follows="image", name="slow", masks="drop")
    plain = assemble("image", TowerSpec.model_validate(VIT))
    with pytest.raises(RecipeError, match="needs the mask token of 'image', which has none"):
        MomentumTower(plain, follows="image", name="slow", masks="replace")
    text = assemble(
        "text",
        TowerSpec.model_validate(
            {"builder": "openclip", "config": {"layers": 1, "width": 16, "heads": 2}}
        ),
    )
    with pytest.raises(RecipeError, match="shuffle: it reads texts"):
        MomentumTower(text, follows="text", shuffle=True)


def shuffled(rank_batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs with and without shuffling in eval mode, and the running mean after one in training
    mode."""
    from vlkd_cli.distributed.runtime import rank

    own = images(seed=1, count=2 * rank_batch)[rank() * rank_batch :][:rank_batch]
    own = own + rank()
    plain = MomentumTower(noisy_tower(), follows="image").eval()
    mixed = MomentumTower(noisy_tower(), follows="image", shuffle=True, seed=3).eval()
    outputs = plain(own)["head"].numpy(), mixed(own, step=5)["head"].numpy()
    mixed.train()(own, step=5)
    return *outputs, mixed.tower.encoder.norm.running_mean.numpy()  # type: ignore[union-attr]


def test_shuffled_samples_come_back_in_order_and_batch_norms_see_other_ranks() -> None:
    for rank, (plain, mixed, mean) in enumerate(run_on_ranks(shuffled, 2, 4)):
        np.testing.assert_allclose(mixed, plain, rtol=1e-5, atol=1e-6)
        own = images(seed=1)[4 * rank :][:4].mean((0, 2, 3)).numpy() + rank
        assert abs(mean - 0.1 * own).max() > 1e-3


def test_shuffling_has_no_effect_on_one_process() -> None:
    first = MomentumTower(noisy_tower(), follows="image", shuffle=True).train()
    second = MomentumTower(noisy_tower(), follows="image").train()
    assert first(images())["head"].equal(second(images())["head"])
