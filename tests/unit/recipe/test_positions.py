"""Sides of a masked objective have rows for the same positions."""

from __future__ import annotations

import pytest

from tests.support.recipes import problems

MAE = """\
towers:
  image:
    builder: timm
    model: vit_tiny_patch16_224
    masks: drop
    heads:
      paint: {name: decoder, reads: tokens, width: 768, at: hidden}
      pixels: {name: patches, reads: input, at: AT}
data: {reader: images, path: photos, augment: {name: standard, mask: {name: random, share: 0.5}}}
distillers:
  - {name: regress, student: STUDENT, teacher: image.pixels}
"""


@pytest.mark.parametrize(
    ("student", "at", "line"),
    [
        ("image.paint", "hidden", None),
        # Half of the positions are hidden, so the numbers of rows are equal.
        (
            "image.paint",
            "visible",
            "'image.pixels' has rows for the visible positions, and the student 'image.paint' for"
            " the hidden positions. Give both the same `at:`.",
        ),
        ("image.paint", "all", "'image.pixels' has rows for all positions, and the student"),
        ("image.tokens", "hidden", "and the student 'image.tokens' for the visible positions."),
    ],
)
def test_rows_of_other_positions_are_not_compared(student: str, at: str, line: str | None) -> None:
    found = problems(MAE.replace("STUDENT", student).replace("AT", at))
    if line is None:
        assert found == []
    else:
        assert any(line in each for each in found)
