"""What is known of images, texts and meshes as inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.meshes import box, off_text
from vlkd_cli.data.batch import Broken, Sample
from vlkd_cli.data.meshes.points import cloud_of
from vlkd_cli.data.modality import MODALITIES, modality_of_file
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.preprocessing import ImageInput, MeshInput


def test_features_have_a_row_per_image_or_per_caption():
    reader = Shapes(num_samples=5, size_px=16)
    captions = len(reader.captions(0))
    assert MODALITIES["image"].rows(reader, range(1, 5)) == range(1, 5)
    assert MODALITIES["text"].rows(reader, range(1, 5)) == range(captions, 5 * captions)


def test_every_modality_reads_its_own_part_of_a_sample():
    reader = Shapes(num_samples=5, size_px=16)
    sample = Sample(3)
    for modality in (MODALITIES["image"], MODALITIES["text"]):
        with pytest.raises(Broken):
            modality.require(sample, ["main"])
        modality.read(sample, reader)
        modality.require(sample, ["main"])
    assert sample.image == reader.image(3)
    assert sample.captions == reader.captions(3)


def test_what_a_sample_lacks_is_reported_with_its_readers_reason():
    with pytest.raises(Broken, match="has no image"):
        MODALITIES["image"].require(Sample(0), [])
    with pytest.raises(Broken, match="file is gone"):
        MODALITIES["image"].require(Sample(0, problem="file is gone"), [])
    blank = Sample(0, captions=["a cat", " "], spans={"main": (0, 1), "answer": (1, 2)})
    MODALITIES["text"].require(blank, ["main"])
    with pytest.raises(Broken, match="has no text 'answer'"):
        MODALITIES["text"].require(blank, ["main", "answer"])
    with pytest.raises(Broken, match="has no caption"):
        MODALITIES["text"].require(Sample(0, captions=[""]), ["main"])


def test_images_are_loaded_at_the_size_that_a_tower_expects():
    pictures = [np.full((24, 32, 3), value, dtype=np.uint8) for value in (0, 255)]
    loaded = MODALITIES["image"].load(pictures, ImageInput((8, 8)))
    assert loaded.shape == (2, 3, 8, 8)
    assert loaded.dtype == torch.uint8
    assert [int(picture.unique()) for picture in loaded] == [0, 255]


def test_a_file_that_is_not_an_image_is_broken(tmp_path):
    (tmp_path / "note.jpg").write_text("no picture", encoding="utf-8")
    with pytest.raises(Broken):
        MODALITIES["image"].load([tmp_path / "note.jpg"], ImageInput((8, 8)))


def test_texts_are_loaded_by_the_towers_own_tokenizer():
    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[len(text)] for text in texts])}

    loaded = MODALITIES["text"].load(("a", "abc"), tokenize)  # type: ignore[arg-type]
    assert loaded["input_ids"].tolist() == [[1], [3]]


def test_meshes_are_loaded_from_files_and_arrays(tmp_path):
    content = off_text(box()).encode()
    (tmp_path / "a.off").write_bytes(content)
    cloud = cloud_of(content, "off")
    loaded = MODALITIES["mesh"].load([tmp_path / "a.off", cloud], MeshInput(16))
    assert loaded.shape == (2, 16, 3)
    torch.testing.assert_close(loaded[0], loaded[1])
    with pytest.raises(Broken, match="has no mesh"):
        MODALITIES["mesh"].require(Sample(0), [])


@pytest.mark.parametrize(
    ("path", "modality"),
    [("a/b.OFF", "mesh"), ("c.png", "image"), ("notes.txt", None), ("obj", None)],
)
def test_a_file_is_known_by_its_suffix(path, modality):
    assert modality_of_file(path) == modality
