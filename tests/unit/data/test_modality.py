"""What is known of images and texts as inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.preprocessing import ImageInput


def test_features_have_a_row_per_image_or_per_caption():
    reader = Shapes(num_samples=5, size_px=16)
    assert MODALITIES["image"].rows(reader) == 5
    assert MODALITIES["text"].rows(reader) == 5 * len(reader.captions(0))


def test_images_are_loaded_at_the_size_that_a_tower_expects():
    pictures = [np.full((24, 32, 3), value, dtype=np.uint8) for value in (0, 255)]
    loaded = MODALITIES["image"].load(pictures, ImageInput((8, 8)))
    assert loaded.shape == (2, 3, 8, 8)
    assert loaded.dtype == torch.uint8
    assert [int(picture.unique()) for picture in loaded] == [0, 255]


def test_a_file_that_is_no_picture_is_broken(tmp_path):
    (tmp_path / "note.jpg").write_text("no picture", encoding="utf-8")
    with pytest.raises(Broken):
        MODALITIES["image"].load([tmp_path / "note.jpg"], ImageInput((8, 8)))


def test_texts_are_loaded_by_the_towers_own_tokenizer():
    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[len(text)] for text in texts])}

    loaded = MODALITIES["text"].load(("a", "abc"), tokenize)  # type: ignore[arg-type]
    assert loaded["input_ids"].tolist() == [[1], [3]]
