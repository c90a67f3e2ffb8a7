from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlkd_cli.builders.trial import refuse_keys, try_images, try_texts, width_of
from vlkd_cli.errors import RecipeError


class Small(nn.Module):
    """Needs images of at least 8 pixels; remembers on which devices it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 8)
        self.norm = nn.BatchNorm2d(4)
        self.devices: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        self.devices.append(images.device.type)
        return self.norm(self.convolution(images)).mean((2, 3))


class Remembers(Small):
    """Holds a tensor that is neither parameter nor buffer, so only a real run works."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = [torch.ones(4)]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.offset[0].sum().item() * torch.ones(4)


def run(network: Any, images: Tensor) -> Tensor:
    return network(images)


@pytest.mark.parametrize("kind", [Small, Remembers])
def test_a_trial_changes_nothing(kind: type[Small]) -> None:
    network = kind().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    assert width_of(try_images(network, (8, 9), run, "model"), "model") == 4
    assert network.training and torch.get_rng_state().equal(state)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def test_a_trial_takes_no_memory_where_the_network_allows_it() -> None:
    network = Small()
    try_images(network, (4000, 4000), run, "model")
    assert network.devices == []  # a copy ran
    network = Remembers()
    try_images(network, (8, 8), run, "model")
    assert network.devices == ["cpu"]


@pytest.mark.parametrize("size", [(7, 8), (0, 8), (-1, 8), (100_000, 100_000)])
def test_a_size_that_the_network_refuses_is_one_line(size: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match=rf"^model: .*{size[0]} x {size[1]} pixels") as error:
        try_images(Small(), size, run, "model")
    assert "\n" not in str(error.value) and "Correct `config` or `image_size`." in str(error.value)


@pytest.mark.parametrize("given", [torch.zeros(1, 4, 1, 1), [torch.zeros(1, 4)], None])
def test_only_one_feature_is_a_feature(given: Any) -> None:
    with pytest.raises(RecipeError, match="for one image, not one feature"):
        width_of(given, "model")


def test_texts_are_tried_too() -> None:
    class Words(nn.Module):
        def __init__(self, table: int) -> None:
            super().__init__()
            self.table = nn.Embedding(table, 4)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return self.table(inputs["input_ids"]) @ torch.ones(
                4, device=inputs["input_ids"].device
            )

    try_texts(Words(5), {"input_ids": torch.tensor([[1, 2]])}, "model")
    with pytest.raises(RecipeError, match="^model: does not encode texts: KeyError: 'input_ids'"):
        try_texts(Words(5), {"ids": torch.tensor([[1, 2]])}, "model")


def test_keys_of_the_library_that_towers_do_not_take_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^model: config\.in_chans: towers take RGB images\.$"):
        refuse_keys({"depth": 3, "in_chans": 1}, {"in_chans": "towers take RGB images."}, "model")
