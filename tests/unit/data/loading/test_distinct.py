from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from tests.unit.data.loading.test_loader import SMALL, letters
from vlkd_cli import console
from vlkd_cli.data.keys import key_of, keys_of
from vlkd_cli.data.loading.choices import ColumnKeys
from vlkd_cli.data.loading.distinct import DistinctOrder, plan
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.loading.order import EpochOrder
from vlkd_cli.data.readers.mix import Mix
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.data.readers.subset import Subset
from vlkd_cli.data.views import CAPTION_KEYS, ImageView, TextView, keys_of_captions


def walked(keys: list[int], step_rows: int) -> list[list[int]]:
    """The definition: pending samples in order, each taken whose key the step lacks."""
    pending, steps = deque(range(len(keys))), []
    while True:
        step, rest = [], deque[int]()
        for at in pending:
            new = keys[at] < 0 or keys[at] not in [keys[other] for other in step]
            (step if new and len(step) < step_rows else rest).append(at)
        if len(step) < step_rows:
            return steps
        steps.append(step)
        pending = rest


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_equals_the_walk_over_all_that_is_pending(seed: int) -> None:
    random = np.random.RandomState(seed)
    keys = random.randint(-1, 7, 60)
    assert plan(keys, 4).steps.tolist() == walked(keys.tolist(), 4)


def batches(ranks: int = 1, workers: int = 0, start: int = 0, **keys: object) -> list[np.ndarray]:
    """Rows of each step of epoch 1, the ranks' parts joined."""
    reader = Shapes(num_samples=80, size_px=24)
    views = {"text": TextView(letters), CAPTION_KEYS: TextView(keys_of_captions)}
    views |= {"image": ImageView(SMALL)} if workers else {}
    found, shared = [], {"batch_size": 8 // ranks, "seed": 3, "world_size": ranks, **keys}
    for rank in range(ranks):
        loader = Loader(reader, views, rank=rank, workers=workers, **shared)  # type: ignore[arg-type]
        found.append(list(loader.batches(1, start)))
        loader.close()
    for parts in zip(*found, strict=True):
        if keys.get("distinct") == "caption":
            own = torch.cat([part.inputs[CAPTION_KEYS] for part in parts])
            assert len(own.unique()) == 8
    steps = zip(*found, strict=True)
    return [np.concatenate([part.indices.numpy() for part in parts]) for parts in steps]


@pytest.mark.parametrize("what", ["caption", "position"])
def test_ranks_workers_and_a_resumed_epoch_agree_on_steps_without_duplicates(what: str) -> None:
    whole = batches(distinct=what)
    assert len(whole) >= 4
    np.testing.assert_array_equal(whole, batches(2, distinct=what))
    np.testing.assert_array_equal(whole[2:], batches(start=2, distinct=what))
    if what == "position":
        np.testing.assert_array_equal(whole, batches(workers=2, distinct=what))
        positions = Shapes(num_samples=80).column("position")
        for step in whole:
            assert len({positions[row] for row in step}) == 8
        assert any(not np.array_equal(*pair) for pair in zip(whole, batches(), strict=False))


def test_a_column_of_a_part_of_a_mixture_differs_within_steps() -> None:
    reader = Mix([Subset(Shapes(num_samples=40), range(5, 40)), Shapes(num_samples=9)], [0.5, 0.5])
    colors = reader.column("color")
    assert colors[35] == Shapes(num_samples=9).column("color")[0]
    loader = Loader(
        reader, {"text": TextView(letters)}, batch_size=5, seed=0, distinct="color", rank=0
    )
    seen = list(loader.batches(0))
    assert seen
    for batch in seen:
        assert len({colors[row] for row in batch.indices.tolist()}) == 5


def test_what_is_left_out_is_counted_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(console, "warn_once", warnings.append)
    keys = np.array([5] * 6 + list(range(10, 16)))
    order = DistinctOrder(
        EpochOrder(12, seed=0), ColumnKeys(keys), step_rows=4, what="entry of column 'x'"
    )
    assert order.steps_per_epoch == 2 and len(order) == 8
    assert warnings == [
        "data.distinct: 4 of 12 samples of an epoch are left out; the most frequent entry of"
        " column 'x' has 6 samples and an epoch 2 steps."
    ]


def test_a_later_epoch_with_fewer_steps_repeats_its_first() -> None:
    def keys_of_epoch(epoch: int, rows: np.ndarray) -> np.ndarray:
        return rows if epoch == 0 else np.where(rows < 8, rows, 7)

    order = DistinctOrder(EpochOrder(12, seed=0), keys_of_epoch, step_rows=4, what="caption")
    later = order.rows(1, 0, 12).reshape(3, 4)
    assert later[2].tolist() == later[0].tolist()
    assert len(set(later[:2].ravel())) == 8
    for step in later:
        assert len(set(keys_of_epoch(1, step))) == 4


def test_keys_are_of_words_and_nothing_equals_an_empty_text() -> None:
    assert key_of("a  dog\n") == key_of("a dog") != key_of("a Dog")
    assert keys_of(["", " "]).tolist() == [-1, -1]
