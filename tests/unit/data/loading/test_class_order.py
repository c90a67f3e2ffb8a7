from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vlkd_cli import console
from vlkd_cli.data.batch import Skipped
from vlkd_cli.data.loading.class_order import ClassOrder
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.data.views import ImageView
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import ImageInput

UNEVEN = np.random.default_rng(0).integers(-1, 11, 100)


def order(labels: np.ndarray = UNEVEN, **keys: int) -> ClassOrder:
    return ClassOrder(labels, **{"per_class": 3, "step_rows": 12, "seed": 7} | keys)


@pytest.mark.shared
def test_rows_are_those_of_the_reference(shared: Path) -> None:
    cases = json.loads((shared / "goldens" / "search_tuning.json").read_bytes())["cases"]
    cases = [case for case in cases if case["kind"] == "class_order"]
    assert len(cases) == 3
    recipes = {
        "balanced/even": lambda rs: (np.arange(120) % 10)[rs.permutation(120)],
        "balanced/uneven": lambda rs: rs.randint(-1, 12, 90),
        "balanced/small_classes": lambda rs: rs.randint(-1, 14, 40),
    }
    for number, case in enumerate(cases):
        labels = recipes[case["id"]](np.random.RandomState(2101 + number)).astype(np.int64)
        given, expected = case["inputs"], case["expected"]
        assert hashlib.sha256(labels.tobytes()).hexdigest()[:16] == given["sha_labels"]
        keys = {key: given[key] for key in ("per_class", "step_rows", "seed")}
        own = ClassOrder(labels, **keys)
        assert own.steps_per_epoch == expected["steps_per_epoch"]
        for at, rows in expected["rows_of_epoch_and_step"].items():
            epoch, step = map(int, at.split(","))
            size = given["step_rows"]
            assert own.rows(epoch, step * size, (step + 1) * size).tolist() == rows, case["id"]


def test_a_step_holds_its_classes_each_with_its_samples() -> None:
    own = order()
    for step in range(own.steps_per_epoch):
        labels = UNEVEN[own.rows(2, 12 * step, 12 * step + 12)]
        assert sorted(Counter(labels.tolist()).values()) == [3, 3, 3, 3]
        assert all(len(set(labels[k : k + 3])) == 1 for k in range(0, 12, 3)) and -1 not in labels


def test_every_class_is_sampled_equally_often_and_no_row_twice_in_a_pass() -> None:
    labels = np.repeat(np.arange(8), [4, 4, 8, 8, 12, 12, 40, 40])
    own = order(labels, per_class=4, step_rows=16, episode_samples=16 * 20)
    rows = own.rows(0, 0, len(own))
    assert set(Counter(labels[rows].tolist()).values()) == {40}
    for number in range(8):
        taken, size = rows[labels[rows] == number], int((labels == number).sum())
        first_pass = taken[: min(size, 40)]
        assert len(set(first_pass.tolist())) == len(first_pass)


def test_any_slice_is_the_same_piece_of_the_epoch() -> None:
    own = order()
    whole = own.rows(1, 0, 36)
    for start, stop in ((0, 6), (6, 12), (5, 31), (11, 13), (36, 36)):
        assert own.rows(1, start, stop).tolist() == whole[start:stop].tolist()
    assert order(seed=8).rows(1, 0, 36).tolist() != whole.tolist()
    assert own.rows(0, len(own), len(own) + 12).tolist() == own.rows(1, 0, 12).tolist()


def test_a_broken_row_is_replaced_by_one_of_its_class() -> None:
    own = order()
    for row in np.flatnonzero(UNEVEN >= 0)[:20].tolist():
        for attempt in range(5):
            other = own.replacement(row, 3, attempt)
            assert UNEVEN[other] == UNEVEN[row]
            assert other == own.replacement(row, 3, attempt)


def test_left_out_and_missing_classes_are_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.warn_once.cache_clear()
    own = order(np.array([-1, 0, 0, 1, 2, 2, 3, -1]), per_class=2, step_rows=4)
    assert set(own.rows(0, 0, 4).tolist()) == {1, 2, 4, 5} and len(own) == 4
    reported = capsys.readouterr().err
    assert "2 classes with one sample and 2 samples without a label are left out" in reported
    with pytest.raises(DataError, match="needs 4 classes a step, the data has 2 .*: lower"):
        order(np.array([0, 0, 1, 1]), per_class=2, step_rows=8)


def test_the_loader_balances_classes_over_ranks_and_replaces_within_a_class() -> None:
    reader = Shapes(num_samples=400, size_px=16)
    labels = reader.labels_of(np.arange(400))
    broken = {int(row): Skipped(f"row {row}", "unreadable") for row in range(0, 400, 3)}

    def batches(rank: int, world_size: int) -> list[list[int]]:
        loader = Loader(
            reader,
            {"image": ImageView(ImageInput((16, 16)))},
            batch_size=16 // world_size,
            seed=1,
            per_class=4,
            rank=rank,
            world_size=world_size,
            max_broken_share=1,
            broken=broken,
        )
        return [batch.indices.tolist() for batch in loader.batches(0)]

    alone = batches(0, 1)
    assert len(alone) == 400 // 16 and not {row for own in alone for row in own} & set(broken)
    for rows in alone:
        assert sorted(Counter(labels[rows].tolist()).values()) == [4, 4, 4, 4]
    assert [a + b for a, b in zip(batches(0, 2), batches(1, 2), strict=True)] == alone
