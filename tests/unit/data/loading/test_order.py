from __future__ import annotations

import numpy as np

from vlkd_cli.data.loading.order import EpochOrder
from vlkd_cli.data.loading.shuffling import hashed, permuted


def test_a_permutation_is_one_for_any_size_and_key() -> None:
    for size in (1, 2, 3, 7, 64, 65, 1000, 4097):
        for key in range(3):
            assert sorted(permuted(np.arange(size), size, hashed(key)).tolist()) == list(
                range(size)
            )


def test_permutations_of_different_keys_look_unrelated() -> None:
    size = 5000
    one, other = (permuted(np.arange(size), size, hashed(key)) for key in (1, 2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert abs(np.corrcoef(one, np.arange(size))[0, 1]) < 0.05
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.05
    assert (one == other).sum() < 10


def test_first_places_are_uniform_over_keys() -> None:
    first = permuted(np.zeros(6000, dtype=np.int64), 6, hashed(np.arange(6000)))
    counts = np.bincount(first, minlength=6)
    assert abs(counts - 1000).max() < 150


def test_an_epoch_is_one_pass_and_differs_from_the_next() -> None:
    order = EpochOrder(70_000, seed=0)
    epochs = [order.rows(epoch, 0, 70_000) for epoch in range(2)]
    assert all(len(np.unique(rows)) == 70_000 for rows in epochs)
    assert (epochs[0] == epochs[1]).mean() < 0.001


def test_any_slice_is_the_same_piece_of_the_epoch() -> None:
    order, fresh = EpochOrder(150_000, seed=4), EpochOrder(150_000, seed=4)
    whole = order.rows(3, 0, 150_000)
    assert np.array_equal(fresh.rows(3, 65_500, 65_600), whole[65_500:65_600])
    assert np.array_equal(fresh.rows(3, 140_000, 140_010), whole[140_000:140_010])


def test_episodes_show_every_row_before_any_comes_again() -> None:
    order = EpochOrder(1000, seed=0, episode_samples=300)
    drawn = np.concatenate([order.rows(epoch, 0, 300) for epoch in range(10)])
    for start in (0, 1000, 2000):
        assert len(np.unique(drawn[start : start + 1000])) == 1000
    assert not np.array_equal(drawn[:1000], drawn[1000:2000])


def test_an_episode_may_be_longer_than_the_data() -> None:
    counts = np.bincount(EpochOrder(10, seed=0, episode_samples=25).rows(0, 0, 25), minlength=10)
    assert set(counts) == {2, 3}


def test_without_shuffling_rows_come_in_their_order() -> None:
    assert EpochOrder(5, seed=0, shuffle=False).rows(0, 0, 7).tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert EpochOrder(5, seed=0, shuffle=False, episode_samples=3).rows(1, 0, 3).tolist() == [
        3,
        4,
        0,
    ]


def test_a_huge_set_is_shuffled_without_its_permutation() -> None:
    order = EpochOrder(10**12, seed=0, episode_samples=2_000_000)
    rows = order.rows(5, 1_000_000, 1_000_064)
    assert len(np.unique(rows)) == 64 and rows.max() < 10**12 and rows.max() > 10**11
