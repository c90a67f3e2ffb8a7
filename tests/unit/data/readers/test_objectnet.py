"""Reader objectnet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.data_sets import objectnet_data
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.readers.objectnet import ObjectNet
from vlkd_cli.errors import DataError


def test_the_border_is_cut_off_every_side(tmp_path: Path) -> None:
    path = objectnet_data(tmp_path)["path"]
    whole, cut = ObjectNet(path=path), ObjectNet(path=path, crop_px=2)
    assert [whole.label(index) for index in range(4)] == [0, 0, 1, 1]
    expected = decode(whole.image(1))[2:-2, 2:-2]
    assert np.array_equal(decode(cut.image(1)), expected)
    assert whole.fingerprint() != cut.fingerprint()
    with pytest.raises(Broken, match="nothing is left of it"):
        ObjectNet(path=path, crop_px=20).image(0)
    with pytest.raises(DataError, match="crop_px must be at least 0"):
        ObjectNet(path=path, crop_px=-1)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("folder_to_objectnet_label.json", None, "has no mappings/folder_to_objectnet_label.json"),
        ("objectnet_to_imagenet_1k.json", "[]", "is a list, not an object"),
        ("objectnet_to_imagenet_1k.json", "{", "is not valid JSON"),
        ("objectnet_to_imagenet_1k.json", '{"Cup": "saucer"}', "'Cup' does not agree with"),
        ("objectnet_to_imagenet_1k.json", "{}", "no image in the folders of"),
        ("imagenet_to_label_2012_v2", None, "cannot be read: No such file"),
    ],
)
def test_damaged_mappings_end_in_one_line(
    file: str, content: str | None, message: str, tmp_path: Path
) -> None:
    path = objectnet_data(tmp_path)["path"]
    place = tmp_path / "mappings" / file
    place.unlink() if content is None else place.write_text(content)
    with pytest.raises(DataError, match=message):
        ObjectNet(path=path)
