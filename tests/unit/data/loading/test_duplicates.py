from __future__ import annotations

import pytest

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.caption_choice import Sources
from vlkd_cli.data.loading import duplicates
from vlkd_cli.data.loading.duplicates import fraction_of_duplicates
from vlkd_cli.data.loading.order import EpochOrder
from vlkd_cli.data.readers.shapes import Shapes


class Words(Shapes):
    """The text of sample n is n // 2; that of the last one cannot be read."""

    def captions(self, index: int) -> list[str]:
        if index == 7:
            raise Broken("no text")
        return [f"caption  {index // 2}"] if index != 5 else [""]


def test_it_is_the_mean_over_steps_of_rows_whose_caption_comes_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = EpochOrder(8, seed=0, shuffle=False)
    # Steps 0 0 1 1 and 2 - 3 -: all of the first, none of the second.
    reader = Words(num_samples=8)
    assert fraction_of_duplicates(reader, order, seed=0, step_rows=4) == 0.5
    monkeypatch.setattr(duplicates, "STEPS", 1)
    assert fraction_of_duplicates(reader, order, seed=0, step_rows=4) == 1.0


class Weighted(Shapes):
    """Two sources of captions, the second the same for all samples."""

    weighs_captions = True
    weights = (1.0, 1e-12)

    def captions(self, index: int) -> list[str]:
        return [f"own {index}", "the same"]

    def caption_sources(self, index: int) -> Sources:
        return Sources([0, 1], self.weights)


def test_captions_are_chosen_by_the_weights_of_their_sources() -> None:
    order, reader = EpochOrder(64, seed=0, shuffle=False), Weighted(num_samples=64)
    assert fraction_of_duplicates(reader, order, seed=0, step_rows=16) == 0
    reader.weights = (1e-12, 1.0)
    assert fraction_of_duplicates(reader, order, seed=0, step_rows=16) == 1
