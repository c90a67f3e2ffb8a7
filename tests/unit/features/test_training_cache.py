"""Features of frozen towers that training reads: damage is noticed, and broken samples stay
known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.fakes import FakeReader, FakeTower
from vlkd_cli.data.batch import Broken
from vlkd_cli.errors import DataError
from vlkd_cli.features.store import CHECKS
from vlkd_cli.features.training_cache import Stored, store_features

LOST = "fake/3"


class Damaged(FakeReader):
    """Twelve samples, of which number 3 cannot be read and number 5 has no caption."""

    def __init__(self) -> None:
        captions = [[f"picture {i}", f"again {i}"] for i in range(12)]
        captions[5] = []
        super().__init__([0] * 12, captions)

    def image(self, index: int) -> Any:
        if index == 3:
            raise Broken("it is cut off")
        return super().image(index)

    def captions(self, index: int) -> Any:
        if index == 3:
            raise Broken("it is not text")
        return super().captions(index)


def image_tower() -> FakeTower:
    return FakeTower("image", lambda position: torch.tensor([1.0, position]), 2)


def text_tower() -> FakeTower:
    return FakeTower("text", lambda text: torch.tensor([1.0, float(text.split()[-1])]), 2)


def stored(tower: FakeTower, folder: Path) -> Stored:
    return store_features(
        tower,  # type: ignore[arg-type]
        Damaged(),
        folder,
        device=torch.device("cpu"),
        precision="fp32",
        batch_size=4,
        workers=0,
    )


def test_images_are_stored_once_with_those_that_cannot_be_read(tmp_path: Path) -> None:
    tower = image_tower()
    first, again = stored(tower, tmp_path), stored(tower, tmp_path)
    assert tower.encoded == 11
    assert first.broken == again.broken == {3: (LOST, "it is cut off")}
    table = np.load(again.path)
    assert table[:, 1].tolist() == [0, 1, 2, 0, *range(4, 12)]


def test_captions_are_stored_with_samples_that_have_none(tmp_path: Path) -> None:
    tower = text_tower()
    first, again = stored(tower, tmp_path), stored(tower, tmp_path)
    assert tower.encoded == 20
    expected = {3: (LOST, "it is not text"), 5: ("fake/5", "has no caption")}
    assert first.broken == again.broken == expected
    assert len(np.load(again.path)) == 22


@pytest.mark.parametrize(
    "content", [b"", b"3,fa", b'3,"fake/3,half a li', b"\x00\xff\n3\n", b"x,y,z\n", None]
)
def test_notes_that_are_damaged_or_lost_hide_no_broken_sample(
    content: bytes | None, tmp_path: Path
) -> None:
    before = stored(image_tower(), tmp_path)
    note = before.path.with_name("broken.csv")
    if content is None:
        note.unlink()
    else:
        note.write_bytes(content)
    tower = image_tower()
    assert stored(tower, tmp_path).broken == {3: (LOST, "could not be read")}
    assert tower.encoded == 0


def test_damaged_rows_are_computed_again(tmp_path: Path) -> None:
    before = stored(image_tower(), tmp_path)
    table = np.load(before.path, mmap_mode="r+")
    table[7:] = 0
    table.flush()
    tower = image_tower()
    after = stored(tower, tmp_path)
    assert tower.encoded == 11  # a window is computed as a whole
    assert np.load(after.path)[:, 1].tolist() == [0, 1, 2, 0, *range(4, 12)]
    assert after.broken == before.broken


def test_a_table_without_checks_is_computed_again(tmp_path: Path) -> None:
    before = stored(image_tower(), tmp_path)
    before.path.with_name(CHECKS).unlink()
    tower = image_tower()
    stored(tower, tmp_path)
    assert tower.encoded == 11


def test_features_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    tower = FakeTower("image", lambda position: torch.tensor([torch.nan, position]), 2)
    with pytest.raises(DataError, match="hold NaN or infinity"):
        stored(tower, tmp_path)
