"""ELEVATER's layouts: every form is read in its row and column order, and what is wrong with a copy
is reported in one line."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.elevater_root import draw, make_elevater_root
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.readers.elevater import Elevater
from vlkd_cli.data.readers.elevater_sets import find_set, locate, official_sets, on_disk
from vlkd_cli.data.views import ImageView
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import ImageInput


@pytest.fixture(scope="module")
def rendered_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_elevater_root(tmp_path_factory.mktemp("elevater"), train=3, test=2)


@pytest.fixture
def root(rendered_root: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(rendered_root, tmp_path / "root"))


def _mean_color(image: bytes | str) -> np.ndarray:
    opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    return np.asarray(np.asarray(opened.convert("RGB")).mean((0, 1)))


def test_facts_cover_the_20_sets() -> None:
    sets = official_sets()
    assert len(sets) == 20
    assert sum(facts.num_classes for facts in sets.values()) == 1151
    assert sum(facts.splits["test"].num_images or 0 for facts in sets.values()) == 192_677
    assert all("{}" in template for facts in sets.values() for template in facts.templates)
    assert list(sets) == sorted(sets)


def test_a_set_is_found_by_each_of_its_names() -> None:
    for name in (
        "oxford-flower-102",
        "Flowers102",
        "flower102",
        "oxford_flower_102_20211007",
        "FLOWERS102",
    ):
        assert find_set(name).name == "oxford-flower-102"
    with pytest.raises(DataError, match="Did you mean 'cifar-100'"):
        find_set("cifar-1000")


@pytest.mark.parametrize("name", ["toy-colors", "toy-tags", "toy-memes", "toy-places"])
def test_every_form_reads_the_picture_that_its_row_names(rendered_root: Path, name: str) -> None:
    reader = Elevater(root=str(rendered_root), dataset=name, split="test")
    assert len(reader) == reader.facts.splits["test"].num_images
    for index in range(len(reader)):
        assert reader.classes is not None
        picture = draw([reader.classes[label] for label in reader.labels(index)], seed=0)
        assert _mean_color(reader.image(index)) == pytest.approx(_mean_color(picture), abs=8)


def test_names_with_spaces_labels_and_captions(rendered_root: Path) -> None:
    reader = Elevater(root=str(rendered_root), dataset="toy-colors", split="train")
    assert reader.name(1).endswith("train.zip@class 1/image 0001 (copy).jpg")
    assert [reader.label(row) for row in range(4)] == [0, 1, 2, 0]
    assert reader.labels_of(np.array([2, 0])).tolist() == [2, 0]
    assert reader.captions(2)[0] == reader.templates[0].replace("{}", "blue")
    assert reader.caption_start(2) == 2 * len(reader.templates)
    assert reader.num_captions == len(reader) * len(reader.templates)


def test_multi_label_rows_keep_all_their_labels(rendered_root: Path) -> None:
    reader = Elevater(root=str(rendered_root), dataset="toy-tags", split="train")
    targets = reader.targets()
    assert targets.shape == (12, 4)
    for row in range(12):
        assert tuple(np.flatnonzero(targets[row])) == reader.labels(row)
    assert len(reader.captions(1)) == len(reader.labels(1)) * len(reader.templates)


@pytest.mark.parametrize("end", ["", " "])
def test_a_row_without_labels_is_read_and_has_a_caption(root: Path, end: str) -> None:
    index = root / "classification/toy_tags_2026/train_ic.txt"
    lines = index.read_text().splitlines()
    index.write_text(
        "\n".join([lines[0].rpartition(" ")[0] + end, *(line + " " for line in lines[1:])])
    )
    reader = Elevater(root=str(root), dataset="toy-tags", split="train")
    assert (reader.labels(0), reader.label(0)) == ((), -1)
    assert reader.captions(0)
    assert reader.labels_of(np.arange(2)).tolist()[0] == -1


def test_an_image_that_is_cut_off_is_evaluated_as_far_as_it_goes(root: Path) -> None:
    folder = root / "classification/toy_colors_2026"
    (folder / "cut.jpg").write_bytes(draw(["red"], seed=0)[:-200])
    lines = (folder / "test.txt").read_text().split("\n")
    (folder / "test.txt").write_text("\n".join(["cut.jpg 0", *lines[1:]]))
    reader = Elevater(root=str(root), dataset="toy-colors", split="test")
    (batch,) = in_order(
        reader, {"image": ImageView(ImageInput(size_px=(24, 24)))}, [0], batch_size=1
    )
    assert batch.inputs["image"].shape == (1, 3, 24, 24)


def test_a_pickled_reader_reads_on(rendered_root: Path) -> None:
    reader = Elevater(root=str(rendered_root), dataset="toy-memes", split="test")
    first = reader.image(0)
    again = pickle.loads(pickle.dumps(reader))
    assert again.image(0) == first
    assert again.fingerprint() == reader.fingerprint()


def test_fingerprint_follows_pictures_and_order(root: Path) -> None:
    before = Elevater(root=str(root), dataset="toy-colors", split="test")
    index = root / "classification/toy_colors_2026/test.txt"
    lines = index.read_text().split("\n")
    index.write_text("\n".join([lines[3], lines[1], lines[2], lines[0], *lines[4:]]))
    after = Elevater(root=str(root), dataset="toy-colors", split="test")
    assert before.fingerprint() != after.fingerprint()
    assert before.row_order_digest() != after.row_order_digest()
    assert before.class_order_digest() == after.class_order_digest()


def test_the_chinese_clip_copy_follows_its_order_file(tmp_path: Path) -> None:
    folder = tmp_path / "rendered-sst2"
    for split, rows in (("train", 2), ("test", 3)):
        for label in (0, 1):
            (folder / split / str(label)).mkdir(parents=True)
            for row in range(rows):
                (folder / split / str(label) / f"{row}.png").write_bytes(draw(["red"], row))
    (folder / "label.txt").write_text("negative\npositive\n")
    plain = Elevater(root=str(tmp_path), dataset="rendered-sst2", split="test")
    assert [plain.label(row) for row in range(6)] == [0, 0, 0, 1, 1, 1]
    assert plain.order_source == "folders"
    (folder / "index.json").write_text("[5, 0, 4, 1, 3, 2]")
    ordered = Elevater(root=str(tmp_path), dataset="SST2", split="test")
    assert [ordered.name(row) for row in range(6)] == [
        plain.name(row) for row in (5, 0, 4, 1, 3, 2)
    ]
    assert ordered.order_source == "folders and index.json"
    assert len(Elevater(root=str(tmp_path), dataset="rendered-sst2", split="train")) == 4
    (folder / "index.json").write_text("[0, 0, 1, 2, 3, 4]")
    with pytest.raises(DataError, match="each of 0 to 5 once"):
        Elevater(root=str(tmp_path), dataset="rendered-sst2", split="test")


def _refused(root: Path, name: str, split: str = "test") -> str:
    with pytest.raises(DataError) as caught:
        Elevater(root=str(root), dataset=name, split=split)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_data_is_named_with_its_place(root: Path, tmp_path: Path) -> None:
    assert "is not a folder" in _refused(tmp_path / "nowhere", "dtd")
    assert "classification/dtd_20211007" in _refused(root, "dtd")
    (root / "classification/toy_colors_2026/test.zip").unlink()
    assert "test.zip is missing" in _refused(root, "toy-colors")
    (root / "classification/toy_places_2026/loose files/test 3.jpg").unlink()
    assert "1 of 8 rows point to files that are missing" in _refused(root, "toy-places")
    assert "no part 'val'" in _refused(root, "toy-places", "val")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("toy-colors", {"test": {"index_path": "test.txt", "num_images": 5}}, "lists 5 ('toy-c"),
        ("toy-colors", {"test": {"index_path": "test.txt", "num_images": "6"}}, "is a text, not"),
        ("toy-colors", {"root_folder": 3}, "a number, not text"),
        ("toy-colors", {"test": {"index_path": "a\0b"}}, "is not a path"),
        ("toy-colors", {"metric": "top1"}, "metric of 'toy-colors' is 'top1'; known: accuracy"),
        (
            "dtd",
            {"name": "dtd", "type": "classification_multilabel"},
            "ELEVATER's set is multi",
        ),
        (
            "dtd",
            {"name": "dtd", "type": "classification_multiclass", "num_classes": 46},
            "num_classes of 'dtd' is 46, and ELEVATER's set has 47",
        ),
        (
            "dtd",
            {
                "name": "dtd",
                "type": "classification_multiclass",
                "num_classes": 47,
                "metric": "roc_auc",
            },
            "metric of 'dtd' is 'roc_auc', and ELEVATER's set has 'accuracy'",
        ),
        ("toy-colors", {"type": "object_detection"}, "unknown ELEVATER data set 'toy-colors'"),
    ],
)
def test_a_registry_that_contradicts_the_files_is_refused(
    root: Path, name: str, change: dict[str, object], message: str
) -> None:
    registry = root / "vision_datasets.json"
    entries = json.loads(registry.read_text())
    entries[0] |= change
    registry.write_text(json.dumps(entries))
    assert message in _refused(root, name)


def test_an_index_that_points_to_missing_members_is_refused(root: Path) -> None:
    index = root / "classification/toy_colors_2026/test.txt"
    index.write_text(index.read_text().replace("image 0002", "image 0999"))
    message = _refused(root, "toy-colors")
    assert (
        "1 of 6 rows point to members" in message
        and "first row 2 'test.zip@class 2/image 0999 (copy).jpg'" in message
    )


def test_a_cut_off_archive_is_refused(root: Path) -> None:
    archive = root / "classification/toy_colors_2026/test.zip"
    archive.write_bytes(archive.read_bytes()[:-200])
    assert "no readable zip archive" in _refused(root, "toy-colors")


@pytest.mark.parametrize("name", ["toy-colors", "toy-tags"])
def test_a_damaged_member_is_broken_and_others_are_not(root: Path, name: str) -> None:
    archive = root / f"classification/{name.replace('-', '_')}_2026/test.zip"
    content = bytearray(archive.read_bytes())
    content[200:220] = bytes(20)
    archive.write_bytes(bytes(content))
    reader = Elevater(root=str(root), dataset=name, split="test")
    with pytest.raises(Broken, match="damaged in the archive"):
        reader.image(0)
    assert reader.image(1)


def test_wrong_labels_and_class_counts_are_refused(root: Path) -> None:
    folder = root / "classification/toy_colors_2026"
    labels = (folder / "labels.txt").read_text()
    (folder / "labels.txt").write_text(labels + "pink\n")
    assert "4 class names, and the data set has 3 classes" in _refused(root, "toy-colors")
    (folder / "labels.txt").write_text(labels)
    index = folder / "test.txt"
    lines = index.read_text()
    for wrong, says in (
        (" 3\n", "outside 0 to 2"),
        (" x\n", "expected 'image path label"),
        (" 0,1\n", "2 labels"),
    ):
        index.write_text(lines.replace(" 0\n", wrong, 1))
        assert says in _refused(root, "toy-colors") and "test.txt:1" in _refused(root, "toy-colors")
    coco = root / "classification/toy_memes_2026/test_meta.json"
    tables = json.loads(coco.read_text())
    coco.write_text(json.dumps(tables | {"images": tables["images"] + tables["images"][:1]}))
    assert "an id occurs twice" in _refused(root, "toy-memes")
    coco.write_text(
        json.dumps(tables | {"categories": tables["categories"] + [{"id": 9, "name": "more"}]})
    )
    assert "3 categories, and the data set has 2 classes" in _refused(root, "toy-memes")
    coco.write_text("{")
    assert "not a COCO index" in _refused(root, "toy-memes")


def test_another_class_order_than_the_official_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "classification/cifar_10_20211007"
    folder.mkdir(parents=True)
    names = list(official_sets()["cifar-10"].classes or ())
    with zipfile.ZipFile(folder / "val.zip", "w") as archive:
        archive.writestr("a.jpg", draw(["red"], 0))
    (folder / "test.txt").write_text("val.zip@a.jpg 3\n")
    (folder / "labels.txt").write_text("\n".join(name.title() for name in names))
    assert Elevater(root=str(tmp_path), dataset="cifar-10", split="test").class_names_confirmed
    names[2], names[3] = names[3], names[2]
    (folder / "labels.txt").write_text("\n".join(names))
    assert "class 'cat' is number 2, and ELEVATER's column for it is 3" in _refused(
        tmp_path, "cifar-10"
    )
    (folder / "labels.txt").write_text("\n".join(f"n{column}" for column in range(10)))
    assert not Elevater(root=str(tmp_path), dataset="cifar-10", split="test").class_names_confirmed


def test_on_disk_lists_what_is_there(rendered_root: Path) -> None:
    assert list(on_disk(rendered_root)) == ["toy-colors", "toy-tags", "toy-memes", "toy-places"]
    assert locate(rendered_root, "toy-memes").layout == "index"


@pytest.mark.shared
def test_real_sets_are_read(shared: Path) -> None:
    root = shared / "data" / "elevater"
    assert list(on_disk(root)) == ["cifar-10-mini", "ants-bees"]
    sizes = {
        ("ants-bees", "train"): 183,
        ("ants-bees", "test"): 61,
        ("cifar-10-mini", "train"): 1500,
        ("cifar-10-mini", "test"): 1000,
    }
    for (name, split), size in sizes.items():
        reader = Elevater(root=str(root), dataset=name, split=split)  # type: ignore[arg-type]
        assert len(reader) == size
        image = reader.image(size - 1)
        assert isinstance(image, bytes) and Image.open(io.BytesIO(image)).size
