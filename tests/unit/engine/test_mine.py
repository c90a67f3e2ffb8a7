"""`vlkd mine`: what it writes, and that a reader takes it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.engine.recipes import IMAGE, tiny_recipe, train, write_recipe
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.encoder import subject_for
from vlkd_cli.engine.mine import MineJob, mine, start_mining
from vlkd_cli.engine.target import open_target
from vlkd_cli.errors import UserError
from vlkd_cli.features.encode import embed_images, embed_texts, normalize

DATA = {"num_samples": 12, "size_px": 32, "short_captions": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    return train(folder, tiny_recipe(data=DATA, train={"epochs": 1}))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))


def test_the_best_wrong_captions_of_each_image_become_a_table_to_train_on(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hard.csv"
    assert (
        start_mining(MineJob(str(run), str(out), num=2, ranks="1:9"), gpus=None, cpu_workers=1) == 0
    )
    rows = table(out)
    assert len(rows) == 12 * 4
    subject, reader = subject_for(open_target(str(run)), "cpu"), Shapes(**DATA)  # type: ignore[arg-type]
    texts = [text for index in range(12) for text in reader.captions(index)]
    owners = np.repeat(np.arange(12), 4)
    assert len(set(texts)) == len(texts)
    scores = normalize(embed_images(subject, reader)) @ normalize(embed_texts(subject, texts)).T
    for index in range(12):
        own = scores[index].masked_fill(torch.from_numpy(owners == index), -2)
        wanted = [texts[place] for place in own.argsort(descending=True)[1:3].tolist()]
        for row in rows[4 * index : 4 * index + 4]:
            assert [row["negative_1"], row["negative_2"]] == wanted
    hard = {"hard": ["negative_1", "negative_2"]}
    mined = open_reader({"reader": "csv", "path": str(out), "texts": hard})
    assert isinstance(mined, Reader) and len(mined) == 48
    recipe = tiny_recipe(distillers=[{"name": "infonce", "negatives": "text@hard"}])
    recipe["data"] = {"reader": "csv", "path": str(out), "texts": hard, "workers": 0}
    recipe["train"]["epochs"] = 1
    train(tmp_path, recipe)


def test_captions_as_queries_have_negatives_of_their_own(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hard.tsv"
    assert mine(MineJob(str(run), str(out), query="text", num=1, device="cpu")) == 0
    rows = table(out)
    assert len(rows) == 48 and len({row["negative_1"] for row in rows[:4]}) > 1
    own = Shapes(**DATA).captions(0)  # type: ignore[arg-type]
    assert not {row["negative_1"] for row in rows[:4]} & set(own)


@pytest.mark.parametrize("query", ["image", "text"])
def test_captions_of_samples_that_match_by_a_column_are_not_negatives_and_the_table_has_it(
    run: Path, tmp_path: Path, query: Any
) -> None:
    out = tmp_path / "hard.csv"
    assert mine(MineJob(str(run), str(out), query=query, positives="shape", device="cpu")) == 0
    reader = Shapes(**DATA)  # type: ignore[arg-type]
    shape_of = {
        text: shape
        for index, shape in enumerate(reader.column("shape"))
        for text in reader.captions(index)
    }
    rows = table(out)
    assert len(set(reader.column("shape"))) > 2 and list(rows[0])[:3] == [
        "filepath",
        "title",
        "shape",
    ]
    for row in rows:
        found = [row[f"negative_{number}"] for number in range(1, 5)]
        assert row["shape"] == shape_of[row["title"]] and all(found)
        assert row["shape"] not in {shape_of[text] for text in found}
    recipe = tiny_recipe(
        distillers=[{"name": "infonce", "positives": "shape", "negatives": "text@hard"}]
    )
    hard = {"hard": ["negative_1", "negative_2"]}
    recipe["data"] = {"reader": "csv", "path": str(out), "texts": hard, "workers": 0}
    recipe["train"]["epochs"] = 1
    if query == "image":
        train(tmp_path, recipe)


def test_labels_are_what_samples_match_by_and_images_are_written_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hard.tsv"
    place = tmp_path / "hard_images" / "0000000.png"
    place.parent.mkdir()
    place.write_bytes(b"of other data")
    assert mine(MineJob(str(run), str(out), positives="label", device="cpu")) == 0
    assert "label: label} and `positives: label`" in capsys.readouterr().out
    rows, reader = table(out), Shapes(**DATA)  # type: ignore[arg-type]
    assert rows[0]["label"] == reader.classes[reader.label(0)]
    assert place.read_bytes()[1:4] == b"PNG"


def test_queries_without_enough_negatives_are_counted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hard.csv"
    mine(MineJob(str(run), str(out), num=3, max_score=-0.99, device="cpu"))
    assert "12 of 12 images have fewer than 3" in "".join(capsys.readouterr())
    assert {row["negative_3"] for row in table(out)} == {""}


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"ranks": "5:5"}, "--range 5:5: two ranks, the smaller first"),
        ({"ranks": "x"}, "--range x: two ranks"),
        ({"ranks": "2:4", "num": 3}, "--num 3 is more than the 2 ranks of --range 2:4"),
        ({"min_score": 0.5, "max_score": 0.1}, "--max-score 0.1 is below --min-score 0.5"),
        ({"output": "hard.json"}, "OUT hard.json: name a .csv or .tsv file."),
        ({"output": "nowhere/hard.csv"}, "there is no folder nowhere. Make it first."),
        ({"target": "towers.yaml"}, "it has no `data:` to mine"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, {"towers": {"image": IMAGE}}, "towers")
    job = MineJob(**{"target": str(run), "output": "hard.csv", **keys})
    with pytest.raises(UserError) as caught:
        start_mining(job, gpus=None, cpu_workers=1)
    assert line in str(caught.value)
