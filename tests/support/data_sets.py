"""Small data sets on disk, one for every reader of the catalogue."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.elevater_root import make_elevater_root
from tests.support.meshes import write_boxes

COLORS = [
    (200, 30, 30),
    (30, 180, 60),
    (40, 60, 220),
    (230, 220, 40),
    (120, 40, 150),
    (20, 20, 20),
]


def photo(number: int, size: tuple[int, int] = (40, 56)) -> Image.Image:
    """A smooth picture (height, width) that differs with its number and in every direction."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    ramp = (rows / size[0] + columns / size[1])[..., None] * np.asarray([60, -40, 30])
    pixels = np.asarray(COLORS[number % len(COLORS)]) * 0.7 + ramp + (number * 7) % 40
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **keys: Any) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **keys)
    return buffer.getvalue()


def write_photos(folder: Path, count: int, stem: str = "photo") -> list[str]:
    """JPEG files in a folder; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{stem}{number:02}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(photo(number)))
    return names


def write_table(
    path: Path,
    rows: Sequence[Sequence[str]],
    *,
    header: Sequence[str] = ("filepath", "title"),
    sep: str = "\t",
) -> Path:
    """A delimited file without quoting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(sep.join(row) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def csv_data(folder: Path) -> dict[str, Any]:
    names = write_photos(folder / "images", 6)
    rows = [(f"images/{name}", f"caption {k} of {name}") for name in names for k in range(2)]
    write_table(folder / "data.tsv", rows)
    return {"reader": "csv", "path": str(folder / "data.tsv")}


def folder_data(folder: Path) -> dict[str, Any]:
    for name in write_photos(folder / "inner", 5):
        (folder / "inner" / name).with_suffix(".txt").write_text(
            f"first of {name}\nsecond of {name}\n"
        )
    return {"reader": "folder", "path": str(folder)}


def images_data(folder: Path) -> dict[str, Any]:
    write_photos(folder / "inner", 5)
    return {"reader": "images", "path": str(folder)}


def webdataset_data(folder: Path) -> dict[str, Any]:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(4 * shard, 4 * shard + 4):
            members[f"{number:04}.jpg"] = encoded(photo(number))
            members[f"{number:04}.txt"] = f"caption of {number}".encode()
            members[f"{number:04}.cls"] = str(number % 3).encode()
        write_tar(folder / f"shard-{shard}.tar", members)
    return {"reader": "webdataset", "path": f"{folder}/shard-{{0..1}}.tar"}


def webdataset_stream(
    folder: Path, shards: int, samples: int, broken: Collection[int] = ()
) -> dict[str, Any]:
    """Shards of so many samples that are read as a stream; the images of some cannot be read."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(shard * samples, (shard + 1) * samples):
            image = b"broken" if number in broken else encoded(photo(number))
            members[f"{number:04}.jpg"] = image
            members[f"{number:04}.txt"] = f"caption of {number}".encode()
        write_tar(folder / f"{shard:03}.tar", members)
    return {
        "reader": "webdataset",
        "path": f"{folder}/{{000..{shards - 1:03}}}.tar",
        "stream": True,
        "samples_per_epoch": shards * samples,
    }


def coco_data(folder: Path) -> dict[str, Any]:
    names = write_photos(folder / "images", 4)
    images = [{"id": 10 + number, "file_name": name} for number, name in enumerate(names)]
    annotations = [
        {"image_id": 10 + number, "caption": f"caption {k} of {number}"}
        for k in range(3)
        for number in range(4)
    ]
    (folder / "captions.json").write_text(
        json.dumps({"images": images, "annotations": annotations})
    )
    return {
        "reader": "coco",
        "path": str(folder / "captions.json"),
        "image_root": str(folder / "images"),
    }


def classification_data(folder: Path) -> dict[str, Any]:
    for split in ("train", "val"):
        for name in ("red_apple", "pear"):
            write_photos(folder / split / name, 3, stem=name)
    return {"reader": "classification", "path": str(folder), "split": "train"}


def shapes_data(folder: Path) -> dict[str, Any]:
    return {"reader": "shapes", "num_samples": 20, "size_px": 32}


def elevater_data(folder: Path) -> dict[str, Any]:
    make_elevater_root(folder, train=2, test=2)
    return {"reader": "elevater", "root": str(folder), "dataset": "toy-colors", "split": "train"}


def clip_benchmark_data(folder: Path) -> dict[str, Any]:
    (folder / "classnames.txt").write_text("apple\nripe pear\n")
    (folder / "zeroshot_classification_templates.txt").write_text(
        "a photo of a {c}.\na drawing of a {c}.\n"
    )
    for split in ("train", "test"):
        for shard in range(2):
            members: dict[str, bytes] = {}
            for number in range(3 * shard, 3 * shard + 3):
                members[f"s{number:07}.jpg"] = encoded(
                    photo(number + (100 if split == "train" else 0))
                )
                members[f"s{number:07}.cls"] = str(number % 2).encode()
            write_tar(folder / split / f"{shard}.tar", members)
        (folder / split / "nshards.txt").write_text("2\n")
    return {"reader": "clip_benchmark", "path": str(folder), "split": "test"}


def write_passages(folder: Path, *, queries: int = 4, passages: int = 6) -> Path:
    """A folder in BEIR's format; query qN is judged 2 with passage pN and 1 with the next one."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    asked = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(queries)]
    texts = [
        {"_id": f"p{n}", "title": f"title {n}", "text": f"passage {n}"} for n in range(passages)
    ]
    for name, records in (("queries", asked), ("corpus", texts)):
        lines = "\n".join(json.dumps(record) for record in records)
        (folder / f"{name}.jsonl").write_text(f"{lines}\n")
    judged = [(f"q{n}", f"p{n + k}", 2 - k) for n in range(queries) for k in range(2)]
    rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (folder / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    return folder


def passages_data(folder: Path) -> dict[str, Any]:
    return {"reader": "passages", "path": str(write_passages(folder))}


def objectnet_data(folder: Path) -> dict[str, Any]:
    """Two classes that ImageNet has, one of them under two names, and one that it has not."""
    mappings = {
        "folder_to_objectnet_label.json": {"bowl_b": "Bowl", "cup_a": "Cup", "egg": "Egg"},
        "objectnet_to_imagenet_1k.json": {"Cup": "cup; coffee mug", "Bowl": "mixing bowl"},
        "pytorch_to_imagenet_2012_id.json": {"968": 1, "504": 2, "659": 0},
    }
    (folder / "mappings").mkdir(parents=True)
    for name, content in mappings.items():
        (folder / "mappings" / name).write_text(json.dumps(content))
    lines = "mixing bowl\ncup\ncoffee mug\n"
    (folder / "mappings" / "imagenet_to_label_2012_v2").write_text(lines)
    for number, name in enumerate(("bowl_b", "cup_a", "egg")):
        write_photos(folder / "images" / name, 2, f"{number}_")
    return {"reader": "objectnet", "path": str(folder)}


def multilingual_data(folder: Path) -> dict[str, Any]:
    """The layout of Crossmodal-3600, in German and English."""
    names = write_photos(folder / "images", 4)
    lines = [
        {
            "image/key": name.removesuffix(".jpg"),
            "image/locale": "de",
            "de": {"caption": [f"Bild {number}", f"noch einmal Bild {number}"]},
            "en": {"caption": [f"picture {number}"]},
        }
        for number, name in enumerate(names)
    ]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return {"reader": "multilingual", "path": str(folder)}


def choices_data(folder: Path) -> dict[str, Any]:
    names = write_photos(folder, 5)
    items = [
        {
            "image": name,
            "right": f"a photo of number {k}",
            "wrong": [f"a photo of number {k + 1}", f"number {k}, upside down"],
            "group": "odd" if k % 2 else "even",
        }
        for k, name in enumerate(names)
    ]
    (folder / "choices.json").write_text(json.dumps(items))
    return {"reader": "choices", "path": str(folder / "choices.json")}


def parquet_data(folder: Path) -> dict[str, Any]:
    """Two files of four rows in row groups of two; some keys need columns of their own."""
    for number in range(2):
        rows = range(4 * number, 4 * number + 4)
        write_parquet(
            folder / f"{number}.parquet",
            {
                "image": [encoded(photo(k)) for k in rows],
                "caption": [f"caption of {k}" for k in rows],
                "label": [k % 3 for k in rows],
            },
            group_rows=2,
        )
    return {"reader": "parquet", "path": f"{folder}/*.parquet"}


def write_parquet(path: Path, columns: dict[str, Any], *, group_rows: int = 3) -> str:
    """A Parquet file with these columns."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, path, row_group_size=group_rows)
    return str(path)


def meshes_data(folder: Path) -> dict[str, Any]:
    write_boxes(folder)
    return {"reader": "meshes", "path": str(folder), "points": 64}


READER_DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "choices": choices_data,
    "multilingual": multilingual_data,
    "objectnet": objectnet_data,
    "csv": csv_data,
    "folder": folder_data,
    "images": images_data,
    "webdataset": webdataset_data,
    "parquet": parquet_data,
    "coco": coco_data,
    "classification": classification_data,
    "elevater": elevater_data,
    "clip_benchmark": clip_benchmark_data,
    "passages": passages_data,
    "meshes": meshes_data,
    "shapes": shapes_data,
}
"""Reader -> writes a small data set into a folder and returns the `data:` section that reads it.
Every reader has its line here."""
