from __future__ import annotations

import math

import pytest
import torch

from vlkd_cli.numerics.positions import sine_cosine


def test_the_first_half_encodes_the_column_and_the_second_the_row() -> None:
    table = sine_cosine(8, 3, 5).view(3, 5, 8)
    assert table[:, :, :4].eq(table[:1, :, :4]).all() and table[:, :, 4:].eq(table[:, :1, 4:]).all()
    # Frequencies 1 and 1 / 100.
    expected = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    torch.testing.assert_close(table[0, 3, :4], torch.tensor(expected))
    torch.testing.assert_close(table[2, 0, 4:], sine_cosine(8, 1, 3)[2, :4])


def test_every_place_has_a_vector_of_its_own() -> None:
    table = sine_cosine(32, 7, 7)
    assert len(torch.unique(table.round(decimals=5), dim=0)) == 49


def test_a_width_that_is_not_a_multiple_of_4_is_refused() -> None:
    with pytest.raises(ValueError, match="a width that 4 divides; got 6"):
        sine_cosine(6, 2, 2)
