from __future__ import annotations

import pytest

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.loading import duplicates
from vlkd_cli.data.loading.duplicates import fraction_of_duplicates
from vlkd_cli.data.loading.order import EpochOrder
from vlkd_cli.data.readers.shapes import Shapes


class Words(Shapes):
    """Sample n says n // 2, the last one nothing that can be read."""

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
