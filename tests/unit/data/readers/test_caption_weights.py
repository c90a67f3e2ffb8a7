"""`caption` with several sources and `caption_weights`, in every reader that takes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.data_sets import encoded, photo, write_photos, write_table, write_tar
from tests.support.recipes import problems_with
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import FeatureView, TextView
from vlkd_cli.errors import DataError

NAMES = ("raw", "long", "synthetic")
WEIGHTS = {"caption_weights": [1, 2, 2]}
SAMPLES = 4


def text_of(source: int, number: int) -> str:
    """The texts of four samples; the second has no synthetic caption, the third a raw one alone."""
    is_empty = (number == 1 and source == 2) or (number == 2 and source > 0)
    return "" if is_empty else f"{NAMES[source]} {number}"


def csv_section(folder: Path) -> dict[str, Any]:
    names = write_photos(folder, SAMPLES)
    rows = [[name, *(text_of(k, n) for k in range(3))] for n, name in enumerate(names)]
    path = write_table(folder / "t.tsv", rows, header=("filepath", *NAMES))
    return {"reader": "csv", "path": str(path), "caption": list(NAMES)}


def members_section(folder: Path) -> dict[str, Any]:
    members: dict[str, bytes] = {}
    for number in range(SAMPLES):
        members[f"{number}.jpg"] = encoded(photo(number))
        for source, name in enumerate(NAMES):
            if (text := text_of(source, number)) or number == 1:
                members[f"{number}.{name}.txt"] = text.encode()
    path = write_tar(folder / "s.tar", members)
    return {"reader": "webdataset", "path": str(path), "caption": [f"{n}.txt" for n in NAMES]}


def keys_section(folder: Path) -> dict[str, Any]:
    members: dict[str, bytes] = {}
    for number in range(SAMPLES):
        members[f"{number}.jpg"] = encoded(photo(number))
        texts = {name: text_of(k, number) or None for k, name in enumerate(NAMES)}
        members[f"{number}.json"] = json.dumps(texts).encode()
    path = write_tar(folder / "s.tar", members)
    return {
        "reader": "webdataset",
        "path": str(path),
        "caption": "json",
        "caption_key": list(NAMES),
    }


def stream_section(folder: Path) -> dict[str, Any]:
    return keys_section(folder) | {"stream": True, "samples_per_epoch": SAMPLES}


def coco_section(folder: Path) -> dict[str, Any]:
    names = write_photos(folder, SAMPLES)
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": n, **{name: text_of(k, n) for k, name in enumerate(NAMES)}}
            for n in range(SAMPLES)
        ],
    }
    (folder / "c.json").write_text(json.dumps(content))
    return {"reader": "coco", "path": str(folder / "c.json"), "caption": list(NAMES)}


def karpathy_section(folder: Path) -> dict[str, Any]:
    names = write_photos(folder, SAMPLES)
    images = [
        {"filename": name, "sentences": [{key: text_of(k, n) for k, key in enumerate(NAMES)}]}
        for n, name in enumerate(names)
    ]
    (folder / "c.json").write_text(json.dumps({"images": images}))
    return {"reader": "coco", "path": str(folder / "c.json"), "caption": list(NAMES)}


SECTIONS: list[Callable[[Path], dict[str, Any]]] = [
    *(csv_section, members_section, keys_section, stream_section, coco_section, karpathy_section)
]


class Recording:
    """Tokenizes texts to their positions in a list of all that came by."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Any) -> dict[str, torch.Tensor]:
        self.seen += list(texts)
        return {"input_ids": torch.zeros(len(texts), 1, dtype=torch.int64)}


def read(section: dict[str, Any], epochs: int, seed: int = 0) -> list[str]:
    texts = Recording()
    loader = Loader(open_reader(section), {"text": TextView(texts)}, batch_size=4, seed=seed)
    for epoch in range(epochs):
        list(loader.batches(epoch))
    return texts.seen


@pytest.mark.parametrize("make", SECTIONS)
def test_sources_are_chosen_by_weight_and_empty_ones_give_the_next(
    make: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    epochs = 400
    counts = Counter(read(make(tmp_path) | WEIGHTS, epochs))
    shares = {text: count / epochs for text, count in counts.items()}
    expected = {
        "raw 0": 0.2,
        "long 0": 0.4,
        "synthetic 0": 0.4,
        "raw 1": 0.6,
        "long 1": 0.4,
        "raw 2": 1.0,
        "raw 3": 0.2,
        "long 3": 0.4,
        "synthetic 3": 0.4,
    }
    assert shares == pytest.approx(expected, abs=0.1)
    assert shares["raw 0"] < 0.27  # not each caption alike


def test_the_choice_depends_on_seed_epoch_and_row_alone(tmp_path: Path) -> None:
    section = csv_section(tmp_path) | WEIGHTS
    assert read(section, 5) == read(section, 5) != read(section, 5, seed=1)
    assert sorted(read(section, 5)[:4]) != sorted(read(section, 5)[4:8])


def test_cached_features_are_those_of_the_chosen_captions(tmp_path: Path) -> None:
    reader = open_reader(csv_section(tmp_path) | WEIGHTS)
    assert isinstance(reader, Reader)
    texts = [text for index in range(len(reader)) for text in reader.captions(index)]
    np.save(tmp_path / "f.npy", np.arange(len(texts), dtype=np.float32)[:, None])
    recorded = Recording()
    stored = FeatureView(tmp_path / "f.npy", "text")
    both = Loader(reader, {"a": stored, "b": TextView(recorded)}, batch_size=4, seed=0)
    alone = Loader(reader, {"a": stored}, batch_size=4, seed=0)
    for epoch in range(20):
        recorded.seen.clear()
        (batch,), (gathered,) = both.batches(epoch), alone.batches(epoch)
        rows = batch.inputs["a"].flatten().int().tolist()  # type: ignore[union-attr]
        assert [texts[row] for row in rows] == recorded.seen
        assert torch.equal(batch.inputs["a"], gathered.inputs["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("make", SECTIONS)
def test_a_weight_for_each_source_is_needed(
    make: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"data.caption_weights has 2 weights, .*names 3"):
        open_reader(make(tmp_path) | {"caption_weights": [1, 2]})


def test_weights_are_checked_with_the_recipe() -> None:
    csv = "data={reader: csv, path: x.csv, caption: a, caption_weights: [1, 2]}"
    (problem,) = problems_with(csv)
    assert problem.startswith("data.caption_weights: has no effect: it weighs several sources")
    keys = csv.replace("caption: a", "caption: [a, b, c]")
    assert "has 2 weights, and data.caption names 3" in problems_with(keys)[0]
    for wrong in ("[true, 2]", "[0, 2]", "[-1, 2]", "['1', 2]"):
        both = csv.replace("caption: a", "caption: [a, b]").replace("[1, 2]", wrong)
        assert "each weight must be a number above 0" in problems_with(both)[0]
    suite = "{suite: retrieval, data: {reader: csv, path: x, caption: [a, b], "
    (problem,) = problems_with(f"evals=[{suite}caption_weights: [1, 2]}}}}]")
    assert problem == (
        "evals[0].data.caption_weights: has no effect: suites read all captions of a sample."
        " Leave it out."
    )
