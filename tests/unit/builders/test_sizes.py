from __future__ import annotations

import pytest

from vlkd_cli.builders.sizes import check_max_length, check_sizes
from vlkd_cli.errors import RecipeError


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None, [], [2, 0]])
def test_sizes_are_positive_integers(value: object) -> None:
    with pytest.raises(RecipeError, match=r"config\.width: expected an integer above 0, got"):
        check_sizes("timm", {"width": value}, ("layers", "width"))
    check_sizes("timm", {"width": 8, "other": value}, ("layers", "width"))


def test_a_limit_leaves_room_and_has_positions() -> None:
    check_max_length("sbert", None, least=3, most=32)
    for limit in (3, 32):
        check_max_length("sbert", limit, least=3, most=32)
    with pytest.raises(RecipeError, match="max_length: 2 leaves no room for a text. Choose at lea"):
        check_max_length("sbert", 2, least=3, most=32)
    with pytest.raises(RecipeError, match="33 is more than the 32 positions of the model"):
        check_max_length("sbert", 33, least=3, most=32)
    with pytest.raises(RecipeError, match="its 2 positions leave no room for a text"):
        check_max_length("sbert", None, least=3, most=2)
    with pytest.raises(RecipeError, match="max_length: 1 leaves no room"):
        check_max_length("sbert", 1, least=1, most=None)
