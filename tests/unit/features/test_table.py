"""Tables of features: unreadable images are marked, and an interruption leaves no trace in the
numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.fakes import FakeReader, FakeTower, random_feature
from tests.support.ranks import run_on_ranks
from vlkd_cli.errors import DataError
from vlkd_cli.features.encode import embed_images, embed_texts
from vlkd_cli.features.forward import insist_on_numbers
from vlkd_cli.features.subject import Subject
from vlkd_cli.features.table import projected_blocks, sample_table, text_table


class Broken(FakeReader):
    def image(self, index: int) -> Any:
        return b"no picture" if index % 7 == 3 else super().image(index)


class BySize(FakeTower):
    """A tower whose features show the size of the batch they were computed in."""

    def features(self, inputs: Any) -> torch.Tensor:
        found = super().features(inputs)
        return found + len(found)


def subject(cache: Path | None = None, tower: type[FakeTower] = FakeTower) -> Subject:
    head = nn.Linear(6, 3)
    torch.manual_seed(0)
    nn.init.normal_(head.weight)
    return Subject(
        tower("image", random_feature(6, 1), 6, head=head, output_width=3),
        FakeTower("text", random_feature(6, 2), 6),
        batch_size=4,
        cache=cache,
    )


def test_images_that_cannot_be_read_are_marked_and_the_others_are_right(tmp_path: Path) -> None:
    table = sample_table(subject(tmp_path), "image", Broken([0] * 90), skip=True)
    lost = [index for index in range(90) if index % 7 == 3]
    assert np.flatnonzero(table.store.broken).tolist() == lost
    expected = torch.stack([random_feature(6, 1)(position) for position in range(90)])
    good = np.setdiff1d(np.arange(90), lost)
    np.testing.assert_allclose(table.store.table()[good], expected.numpy()[good], rtol=1e-6)
    assert not table.store.table()[lost].any()


def test_marked_tables_are_not_those_of_suites(tmp_path: Path) -> None:
    sample_table(subject(tmp_path), "image", Broken([0] * 9), skip=True)
    with pytest.raises(DataError, match="fake/3"):
        embed_images(subject(tmp_path), Broken([0] * 9))


def test_a_window_that_was_left_unfinished_is_computed_whole(tmp_path: Path) -> None:
    reader = Broken([0] * 150)
    expected = sample_table(subject(tower=BySize), "image", reader, skip=True).store.table()
    table = sample_table(subject(tmp_path, BySize), "image", reader, skip=True)
    # As a kill in the middle of writing leaves it: of the second window, some rows are done.
    rows = np.arange(66, 150)
    table.store._write_checks(rows, np.zeros(len(rows), dtype=np.uint64))
    again = subject(tmp_path, BySize)
    resumed = sample_table(again, "image", reader, skip=True).store.table()
    np.testing.assert_array_equal(resumed, expected)
    assert again.image is not None and 0 < again.image.encoded < 100


def on_ranks(folder: str) -> Any:
    table = sample_table(subject(Path(folder), BySize), "image", Broken([0] * 150), skip=True)
    return np.array(table.store.table()), table.store.broken


@pytest.mark.slow
def test_marks_and_numbers_are_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    table = sample_table(subject(tower=BySize), "image", Broken([0] * 150), skip=True)
    for rows, broken in run_on_ranks(on_ranks, 2, str(tmp_path)):
        np.testing.assert_array_equal(rows, table.store.table())
        np.testing.assert_array_equal(broken, table.store.broken)


def test_blocks_give_what_suites_get_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlkd_cli.features.table.PROJECTED_AT_ONCE", 8)
    monkeypatch.setattr("vlkd_cli.features.forward.PROJECTED_AT_ONCE", 8)
    own = subject()
    reader = FakeReader([0] * 21)
    table = sample_table(own, "image", reader)
    blocks = list(projected_blocks(own, table, table.wanted))
    assert [len(block) for block in blocks] == [8, 8, 5]
    assert torch.equal(torch.cat(blocks), embed_images(subject(), reader))
    texts = ["a", "bb", "a", "ccc", "bb"] * 3
    table = text_table(own, texts)
    assert len(table.store.table()) == 3
    found = torch.cat(list(projected_blocks(own, table, table.wanted)))
    assert torch.equal(found, embed_texts(subject(), texts))


def test_features_that_are_not_finite_are_refused_with_their_count() -> None:
    features = torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])
    with pytest.raises(DataError, match="1 of 2 features of tower 'image' hold NaN"):
        insist_on_numbers(FakeTower("image", random_feature(6, 1), 6), features)
