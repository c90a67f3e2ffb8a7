from __future__ import annotations

import numpy as np
import pytest

from vlkd_cli.data.loading.order import BlockOrder, Blocks

STARTS = np.array([0, 3, 4, 10, 17, 20])


def test_every_pass_takes_each_row_once_in_an_order_of_its_own() -> None:
    order = BlockOrder(Blocks(STARTS, 2), seed=0)
    passes = [order.rows(epoch, 0, 20).tolist() for epoch in range(3)]
    assert all(sorted(each) == list(range(20)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    assert BlockOrder(Blocks(STARTS, 2), seed=1).rows(0, 0, 20).tolist() != passes[0]


def test_rows_that_are_read_together_come_together() -> None:
    """At any time the rows of two blocks are shuffled among each other, and of no others."""
    rows = BlockOrder(Blocks(STARTS, 2), seed=3).rows(0, 0, 20)
    blocks = np.searchsorted(STARTS, rows, side="right") - 1
    seen = [list(dict.fromkeys(blocks.tolist()))[k : k + 2] for k in (0, 2, 4)]
    sizes = [sum(int(STARTS[b + 1] - STARTS[b]) for b in own) for own in seen]
    places = np.cumsum([0, *sizes])
    for own, first, stop in zip(seen, places, places[1:], strict=False):
        assert set(blocks[first:stop].tolist()) == set(own)
    changes = np.count_nonzero(np.diff(blocks))
    assert changes > 5  # and not one block after another


@pytest.mark.parametrize("episode", [7, 45])
def test_episodes_are_pieces_of_the_passes(episode: int) -> None:
    order = BlockOrder(Blocks(STARTS, 2), seed=0, episode_samples=episode)
    rows = np.concatenate([order.rows(epoch, 0, episode) for epoch in range(60 // episode + 1)])
    assert sorted(rows[:20].tolist()) == sorted(rows[20:40].tolist()) == list(range(20))
    pieces = [order.rows(1, k, min(k + 3, episode)).tolist() for k in range(0, episode, 3)]
    assert [row for piece in pieces for row in piece] == order.rows(1, 0, episode).tolist()


def test_a_broken_row_is_replaced_out_of_its_block() -> None:
    order = BlockOrder(Blocks(STARTS, 2), seed=0)
    found = {order.replacement(5, seed, 0) for seed in range(100)}
    assert found == set(range(4, 10))
    assert {order.replacement(3, seed, 9) for seed in range(300)} == set(range(20))
