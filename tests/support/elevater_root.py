"""A small data root in ELEVATER's layout, rendered here: every form of index, archive and label
that the 20 data sets use.

| data set | form |
|---|---|
| toy-colors | index lines, names with spaces, stored zip members, 3 classes, accuracy |
| toy-tags | index lines with several labels or none, deflated zip members, 11-point mAP |
| toy-memes | COCO json with zip_file, 2 classes, ROC AUC |
| toy-places | COCO json with zip@ names and plain files, 4 classes, mean per class |
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 50, 220),
    "yellow": (220, 210, 30),
}


def draw(colors: list[str], seed: int) -> bytes:
    """A noisy picture with a stripe for each color, as a JPEG; gray without any."""
    noise = np.random.RandomState(seed).randint(-25, 26, (24, 30, 3))
    stripes = [COLORS[color] for color in colors] or [(128, 128, 128)]
    pixels = (
        np.array([stripes[column * len(stripes) // 30] for column in range(30)])[None].repeat(24, 0)
        + noise
    )
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def make_elevater_root(root: Path, train: int = 12, test: int = 8) -> Path:
    """Draw the four data sets; `train` and `test` are images per class."""
    entries = [
        _colors(root, train, test),
        _tags(root, train, test),
        _memes(root, train, test),
        _places(root, train, test),
    ]
    (root / "vision_datasets.json").write_text(json.dumps(entries), encoding="utf-8")
    return root


def _colors(root: Path, train: int, test: int) -> dict[str, Any]:
    folder, names = root / "classification" / "toy_colors_2026", ["red", "green", "blue"]
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    entry = _entry("toy-colors", folder, "classification_multiclass", 3)
    for split, count in (("train", train), ("test", test)):
        lines = []
        with zipfile.ZipFile(folder / f"{split}.zip", "w", zipfile.ZIP_STORED) as archive:
            for row in range(count * 3):
                member = f"class {row % 3}/image {row:04d} (copy).jpg"
                archive.writestr(
                    member, draw([names[row % 3]], seed=row + 1000 * (split == "test"))
                )
                lines.append(f"{split}.zip@{member} {row % 3}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        entry[split] = {
            "index_path": f"{split}.txt",
            "files_for_local_usage": [f"{split}.zip"],
            "num_images": count * 3,
        }
    return entry


def _tags(root: Path, train: int, test: int) -> dict[str, Any]:
    folder, names = root / "classification" / "toy_tags_2026", list(COLORS)
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("\n".join(names), encoding="utf-8")
    entry = _entry("toy-tags", folder, "classification_multilabel", 4)
    for split, count in (("train", train), ("test", test)):
        lines, generator = [], np.random.RandomState(count)
        with zipfile.ZipFile(folder / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for row in range(count * 4):
                own = sorted({row % 4, int(generator.randint(4))})
                archive.writestr(
                    f"{row:04d}.jpg",
                    draw(
                        [names[label] for label in own], seed=row + 5000 + 1000 * (split == "test")
                    ),
                )
                lines.append(f"{split}.zip@{row:04d}.jpg {','.join(map(str, own))}")
        (folder / f"{split}_ic.txt").write_text("\r\n".join(lines), encoding="utf-8")
        entry[split] = {
            "index_path": f"{split}_ic.txt",
            "files_for_local_usage": [f"{split}.zip"],
            "num_images": count * 4,
        }
    return entry


def _memes(root: Path, train: int, test: int) -> dict[str, Any]:
    folder, names = root / "classification" / "toy_memes_2026", ["blue", "yellow"]
    folder.mkdir(parents=True)
    entry = _entry("toy-memes", folder, "classification_multiclass", 2) | {
        "labelmap": None,
        "format": "coco",
        "metric": "roc_auc",
    }
    with zipfile.ZipFile(folder / "img.zip", "w", zipfile.ZIP_STORED) as archive:
        for split, count in (("train", train), ("test", test)):
            images, annotations = [], []
            for row in range(count * 2):
                name = f"img/{split} {row}.jpg"
                archive.writestr(
                    name, draw([names[row % 2]], seed=row + 9000 + 1000 * (split == "test"))
                )
                images.append({"id": row + 1, "file_name": name, "zip_file": "img.zip"})
                annotations.append({"id": row + 1, "image_id": row + 1, "category_id": 7 + row % 2})
            _write_coco(
                folder / f"{split}_meta.json", images, annotations, {7: "blue", 8: "yellow"}
            )
            entry[split] = {
                "index_path": f"{split}_meta.json",
                "files_for_local_usage": ["img.zip"],
                "num_images": count * 2,
            }
    return entry


def _places(root: Path, train: int, test: int) -> dict[str, Any]:
    folder, names = root / "classification" / "toy_places_2026", list(COLORS)
    (folder / "loose files").mkdir(parents=True)
    entry = _entry("toy-places", folder, "classification_multiclass", 4) | {
        "labelmap": None,
        "metric": "mean-per-class",
    }
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for split, count in (("train", train), ("test", test)):
            images, annotations = [], []
            for row in range(count * 4):
                picture = draw([names[row % 4]], seed=row + 20000 + 1000 * (split == "test"))
                name = f"loose files/{split} {row}.jpg"
                if row % 2:
                    (folder / name).write_bytes(picture)
                else:
                    name = f"images.zip@images/{split}{row}.jpg"
                    archive.writestr(name.partition("@")[2], picture)
                images.append({"id": row, "file_name": name})
                annotations.append({"id": row, "image_id": row, "category_id": row % 4})
            # Tables are in no particular order; rows and columns follow the ids.
            _write_coco(
                folder / f"{split}.json",
                images[::-1],
                annotations,
                dict(reversed(list(enumerate(names)))),
            )
            entry[split] = {
                "index_path": f"{split}.json",
                "files_for_local_usage": ["images.zip"],
                "num_images": count * 4,
            }
    return entry


def _write_coco(
    path: Path,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    names: dict[int, str],
) -> None:
    categories = [{"id": key, "name": name} for key, name in names.items()]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
        encoding="utf-8",
    )


def _entry(name: str, folder: Path, kind: str, classes: int) -> dict[str, Any]:
    return {
        "name": name,
        "version": 1,
        "type": kind,
        "root_folder": f"classification/{folder.name}",
        "labelmap": "labels.txt",
        "num_classes": classes,
    }
