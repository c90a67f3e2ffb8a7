from __future__ import annotations

from torch import nn

from vlkd_cli.builders.layers import find_layers


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)


class Encoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(10_000, 8)
        self.blocks = nn.ModuleList([Block(8) for _ in range(depth)])
        self.norm = nn.LayerNorm(8)


def test_blocks_of_a_list_are_the_layers_whatever_the_size_of_the_word_embeddings() -> None:
    assert find_layers(Encoder(3)) == [["blocks.0"], ["blocks.1"], ["blocks.2"]]


def test_a_single_block_is_one_layer() -> None:
    assert find_layers(Encoder(1)) == [["blocks.0"]]


def test_stages_of_blocks_are_opened() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(Block(4), Block(4)), nn.Sequential(Block(8))
    )
    assert find_layers(network) == [["1.0"], ["1.1"], ["2.0"]]


def test_a_row_of_plain_layers_has_them_as_its_layers() -> None:
    assert find_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))) == [["0"], ["2"]]


def test_what_follows_a_row_of_equal_blocks_belongs_to_its_last() -> None:
    network = nn.Module()
    network.encoder = nn.ModuleList([Block(8), Block(8)])
    network.pooler = Block(4)
    assert find_layers(network) == [["encoder.0"], ["encoder.1", "pooler"]]
