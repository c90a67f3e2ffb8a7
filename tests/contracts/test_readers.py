"""The contract of every reader of the catalogue."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_sets import READER_DATA, photo
from tests.support.elevater_root import make_elevater_root
from tests.support.meshes import box, off_text
from vlkd_cli import catalog
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import RecipeError

READERS = catalog.names("reader")
WITHOUT_IMAGES = ("passages", "meshes")
WITH_MESHES = ("meshes",)


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in READER_DATA.items()}


def opened(section: dict[str, Any]) -> Reader:
    reader = open_reader(section)
    assert isinstance(reader, Reader)
    return reader


def test_every_reader_of_the_catalogue_has_small_data_for_these_tests() -> None:
    assert len(READERS) >= 8
    assert set(READERS) == set(READER_DATA)


@pytest.mark.parametrize("name", READERS)
def test_what_a_reader_offers_is_there(name: str, sections: dict[str, dict[str, Any]]) -> None:
    reader = opened(sections[name])
    assert len(reader) >= 4
    for index in range(len(reader)):
        image, mesh = reader.image(index), reader.mesh(index)
        assert (image is not None) == (name not in WITHOUT_IMAGES)
        assert (mesh is not None) == (name in WITH_MESHES)
        if image is not None:
            pixels = decode(image)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        if mesh is not None:
            assert mesh.dtype == np.float32 and mesh.ndim == 2 and mesh.shape[1] == 6
        captions = reader.captions(index)
        assert bool(captions) == reader.has_captions
        assert all(isinstance(caption, str) and caption for caption in captions)
        assert reader.name(index)


@pytest.mark.parametrize("name", READERS)
def test_caption_start_counts_the_captions_before(
    name: str, sections: dict[str, dict[str, Any]]
) -> None:
    reader = opened(sections[name])
    counts = [len(reader.captions(index)) for index in range(len(reader))]
    expected = np.concatenate([[0], np.cumsum(counts)])
    assert [reader.caption_start(index) for index in range(len(reader) + 1)] == expected.tolist()
    assert reader.caption_starts(np.arange(len(reader) + 1)).tolist() == expected.tolist()
    assert reader.num_captions == sum(counts)


@pytest.mark.parametrize("name", READERS)
def test_labels_agree_with_the_class_names(name: str, sections: dict[str, dict[str, Any]]) -> None:
    reader = opened(sections[name])
    labels = [reader.label(index) for index in range(len(reader))]
    assert reader.labels_of(np.arange(len(reader))).tolist() == labels
    if reader.classes is not None:
        assert all(0 <= label < len(reader.classes) for label in labels)
        assert all("{}" in template for template in reader.templates or ["{}"])


@pytest.mark.parametrize("name", READERS)
def test_a_pickled_reader_reads_the_same(name: str, sections: dict[str, dict[str, Any]]) -> None:
    reader = opened(sections[name])
    mesh = reader.mesh(1)
    assert bool(reader.captions(0)) == reader.has_captions
    copy = pickle.loads(pickle.dumps(reader))
    assert len(copy) == len(reader)
    assert copy.fingerprint() == reader.fingerprint()
    assert list(copy.captions(1)) == list(reader.captions(1))
    if mesh is not None:
        assert np.array_equal(copy.mesh(1), mesh)
    if name not in WITHOUT_IMAGES:
        assert np.array_equal(decode(copy.image(1)), decode(reader.image(1)))


@pytest.mark.parametrize("name", READERS)
def test_the_fingerprint_is_the_same_for_a_copy_in_another_folder(
    name: str, sections: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    copy = READER_DATA[name](tmp_path)
    assert opened(sections[name]).fingerprint() == opened(copy).fingerprint()


@pytest.mark.parametrize("name", [name for name in READERS if name != "shapes"])
def test_the_fingerprint_changes_with_an_image_or_a_caption(name: str, tmp_path: Path) -> None:
    section = READER_DATA[name](tmp_path)
    before = opened(section).fingerprint()
    if name == "elevater":
        make_elevater_root(tmp_path / "other", train=3, test=2)
        section = section | {"root": str(tmp_path / "other")}
    elif name == "webdataset":
        shutil.copyfile(tmp_path / "shard-1.tar", tmp_path / "shard-0.tar")
    elif name == "parquet":
        shutil.copyfile(tmp_path / "1.parquet", tmp_path / "0.parquet")
    elif name == "clip_benchmark":
        shutil.copyfile(tmp_path / "test" / "1.tar", tmp_path / "test" / "0.tar")
    elif name == "passages":
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text(corpus.read_text().replace("passage 2", "another passage"))
    elif name == "meshes":
        (tmp_path / "flat_slab" / "00.off").write_text(off_text(box(2, 3, 4)))
    else:
        images = sorted(
            path for path in tmp_path.rglob("*.jpg") if path.parent.parent.name != "val"
        )
        photo(91).save(images[0])
    assert opened(section).fingerprint() != before


@pytest.mark.parametrize("name", READERS)
def test_a_misspelled_key_names_the_closest(name: str, sections: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'split'"):
        open_reader(sections[name] | {"spilt": "train"})
