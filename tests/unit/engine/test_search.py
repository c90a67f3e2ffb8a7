"""`vlkd search`: the nearest rows, exactly; an index of another model, and other mistakes, are one
line."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlkd_cli
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import TEXT, tiny_recipe, train
from tests.unit.engine.test_encode import TEXTS, write_inputs
from vlkd_cli.engine.search import nearest
from vlkd_cli.errors import DataError


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two runs of one recipe, inputs, and indexes of images and texts by the first run."""
    folder = tmp_path_factory.mktemp("home")
    recipe = tiny_recipe(data={"num_samples": 16}, train={"epochs": 1})
    train(folder, recipe, "runs/first")
    train(folder, {**recipe, "train": {**recipe["train"], "seed": 1}}, "runs/second")
    write_inputs(folder)
    run, photos, texts = folder / "runs" / "first", folder / "photos", folder / "texts.txt"
    assert leaves(["encode", str(run), str(photos), str(folder / "photos.npy")]) == 0
    assert leaves(["encode", str(run), str(texts), str(folder / "texts.npy"), "--raw"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def encoder(home: Path) -> Any:
    return vlkd_cli.load(home / "runs" / "first")


def answers(capsys: Any, *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert leaves(["search", *words, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_texts_and_images_find_the_images_of_largest_cosine(encoder, capsys):
    files = sorted(Path("photos").rglob("*.png"))
    ids = [str(file.relative_to("photos")) for file in files]
    images = encoder.encode(files)
    for query, tower in (("a red disc", "text"), ("photos/07.png", "image")):
        (answer,) = answers(capsys, "photos.npy", query, "-k", "5")
        vector = encoder[tower].encode(query)[0]
        scores = images.astype(np.float64) @ vector.astype(np.float64)
        order = np.argsort(-scores, kind="stable")[:5]
        assert (answer["query"], answer["tower"]) == (query, tower)
        assert [each["id"] for each in answer["results"]] == [ids[place] for place in order]
        found = [each["score"] for each in answer["results"]]
        np.testing.assert_allclose(found, scores[order], rtol=1e-6)
    assert answer["results"][0] == {"rank": 1, "score": pytest.approx(1.0), "id": "07.png"}


def test_a_parquet_index_gives_the_results_of_a_npy_index(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    for source, query, options in (
        ("photos", "photos/07.png", []),
        ("texts.txt", "a red disc", ["--raw", "--dtype", "float16"]),
    ):
        found = []
        for ending in ("npy", "parquet"):
            out = str(tmp_path / f"{Path(source).stem}.{ending}")
            assert leaves(["encode", "runs/first", source, out, *options]) == 0
            page = tmp_path / "page.html"
            found.append(answers(capsys, out, query, "-k", "3", "--page", str(page)))
            assert "data:image" in page.read_text() or source != "photos"
        assert found[0] == found[1] and len(found[0][0]["results"]) == 3


def test_several_queries_and_raw_vectors(encoder, capsys):
    found = answers(capsys, "runs/first", "texts.npy", "a red disc", "a dark blue square")
    assert [each["results"][0]["text"] for each in found] == [TEXTS[0], TEXTS[3]]
    raw = encoder.encode(TEXTS[0], normalize=False)[0]
    assert found[0]["results"][0]["score"] == pytest.approx(float(raw @ raw), rel=1e-5)
    assert len(found[0]["results"]) == 5, "there are no more"
    # Two equal texts: the first line is ahead.
    assert [each["id"] for each in found[0]["results"] if each["text"] == TEXTS[0]] == [
        "line 1",
        "line 6",
    ]


def test_a_table_is_printed_with_texts(capsys):
    assert leaves(["search", "texts.npy", "a red disc", "-k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a red disc"
    assert lines[1].split() == ["rank", "score", "id", "text"]
    assert re.fullmatch(r" +1 +\d+\.\d{4} +line 1 +a red disc", lines[3])


def test_an_existing_file_is_a_text_for_a_text_tower(capsys):
    (answer,) = answers(capsys, "photos.npy", "photos/07.png", "--tower", "text")
    assert answer["tower"] == "text"


def test_texts_from_standard_input_are_stored_with_the_index(capsys, monkeypatch, tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(b"a red disc\na dark blue square\n"))
    monkeypatch.setattr("sys.stdin", stream)
    out = str(tmp_path / "out.npy")
    assert leaves(["encode", "runs/first", "-", out]) == 0
    assert answers(capsys, out, "a red disc")[0]["results"][0]["text"] == "a red disc"


def test_an_input_that_has_changed_is_not_shown(capsys, tmp_path):
    (tmp_path / "few.txt").write_text("a red disc\n")
    index = str(tmp_path / "few.npy")
    assert leaves(["encode", "runs/first", str(tmp_path / "few.txt"), index]) == 0
    (tmp_path / "few.txt").write_text("something else\n")
    assert leaves(["search", index, "a red disc"]) == 0
    message = capsys.readouterr()
    assert "line 1" in message.out and "something else" not in message.out
    assert "has changed since it was encoded, so only ids are shown" in message.err


def test_the_input_that_an_index_names_runs_no_command(capsys, tmp_path):
    index = tmp_path / "sent.npy"
    index.write_bytes(Path("texts.npy").read_bytes())
    page = json.loads(Path("texts.npy.json").read_text())
    reader = {"reader": "webdataset", "caption": "txt", "image": None}
    page["input"] = {"path": f"pipe:touch {tmp_path}/sprung", "column": None, "reader": reader}
    index.with_name("sent.npy.json").write_text(json.dumps(page))
    assert leaves(["search", str(index), "a red disc"]) == 0
    message = capsys.readouterr()
    assert "line 1" in message.out
    assert "cannot be shown" in message.err and "runs a command. Add --trust" in message.err
    assert not (tmp_path / "sprung").exists()


def test_the_search_is_exact_over_blocks_and_of_equal_rows_the_first_is_ahead(monkeypatch):
    monkeypatch.setattr("vlkd_cli.engine.search.ROWS_AT_ONCE", 7)
    rows = np.random.RandomState(0).randint(-1, 2, (40, 3)).astype(np.float16)
    queries = torch.from_numpy(np.random.RandomState(1).randint(-1, 2, (6, 3)).astype(np.float32))
    scores, positions = nearest(rows, queries, 12)
    every = queries.numpy() @ rows.astype(np.float32).T
    order = np.argsort(-every, axis=1, kind="stable")[:, :12]
    np.testing.assert_array_equal(positions.numpy(), order)
    np.testing.assert_array_equal(scores.numpy(), np.take_along_axis(every, order, axis=1))
    assert nearest(rows, queries, 10**12)[0].shape == (6, 40)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(value, monkeypatch):
    monkeypatch.setattr("vlkd_cli.engine.search.ROWS_AT_ONCE", 2)
    rows = np.ones((5, 3), np.float32)
    rows[3, 1] = value
    with pytest.raises(DataError, match="row 3 of the index is not finite"):
        nearest(rows, torch.ones(1, 3), 2)


def test_a_page_is_one_file_with_a_thumbnail_for_each_result(tmp_path, capsys):
    page = tmp_path / "page.html"
    words = ["search", "photos.npy", "a <red> disc", "photos/07.png", "-k", "4"]
    assert leaves([*words, "--page", str(page)]) == 0
    assert f"Page: {page}" in capsys.readouterr().out
    text = page.read_text()
    assert "a &lt;red&gt; disc" in text and "<red>" not in text
    assert text.count('class="thumb"') == 9  # the second query is a picture too
    assert text.count("data:image/webp;base64,") >= 4
    assert "photos/07.png" in text and "Search in photos.npy" in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)


def test_a_page_that_cannot_be_written_is_one_line(capsys):
    for page in ("photos/07.png/x.html", "."):
        assert leaves(["search", "photos.npy", "a", "--page", page]) == 2
        assert "--page" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("runs/second photos.npy a", "was encoded by tower 'image' of other weights than those of"),
        ("runs/second photos.npy a", "Write it again: vlkd encode runs/second "),
        ("gone.npy a", "INDEX gone.npy: no such file"),
        ("photo.npy a", "INDEX photo.npy: no such file. Did you mean 'photos.npy'? `vlkd encode"),
        ("photos.npy photos", "query photos: it is a folder. For a text of these words, add"),
        ("photos.npy photos/17.pn", "query photos/17.pn: no such file. Did you mean 'photos/"),
        ("photos a", "which index? Give a .npy or .parquet file"),
        ("gone.parquet a", "INDEX gone.parquet: no such file"),
        ("photos.npy", "what is searched in photos.npy?"),
        ("photos.npy gone.png", "query gone.png: no such file"),
        ("photos.npy a --tower image", "query a: no such file, and tower 'image' takes files"),
        ("photos.npy a --tower txt", "there is no tower 'txt'. Did you mean 'text'?"),
        ("photos.npy tiny.yaml", "tiny.yaml: it is not an image"),
    ],
)
def test_a_mistake_ends_in_one_line(words, line, capsys):
    assert leaves(["search", *words.split()]) == 2
    assert line in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_command_that_renews_an_index_has_its_options(tmp_path, capsys):
    (tmp_path / "my table.csv").write_text("no;words\n1;a red disc\n2;a dark blue square\n")
    table, index = str(tmp_path / "my table.csv"), str(tmp_path / "out.npy")
    options = ["--tower", "text", "--column", "words", "--reader", "sep=;", "--raw"]
    assert leaves(["encode", "runs/first", table, index, *options]) == 0
    assert leaves(["search", "runs/second", index, "a red disc"]) == 2
    command = capsys.readouterr().err.strip().rpartition("Write it again: vlkd ")[2]
    assert leaves(shlex.split(command)) == 0
    assert leaves(["search", "runs/second", index, "a red disc"]) == 0


def test_an_empty_query_is_refused(capsys):
    assert leaves(["search", "texts.npy", "a red disc", " "]) == 2
    assert "a query is empty. Give a text, or the path" in capsys.readouterr().err


def test_towers_of_other_widths_are_not_compared(tmp_path, capsys, home):
    narrow = {**TEXT, "head": {"name": "linear", "width": 4}}
    recipe = tiny_recipe(towers={"image": tiny_recipe()["towers"]["image"], "text": narrow})
    (tmp_path / "r.yaml").write_text(json.dumps({"towers": recipe["towers"]}))
    index = str(tmp_path / "out.npy")
    assert leaves(["encode", str(tmp_path / "r.yaml"), "photos", index]) == 0
    assert leaves(["search", index, "a red disc"]) == 2
    assert "tower 'text' gives 4 values and the index has 16" in capsys.readouterr().err


def test_a_query_that_no_tower_takes_is_reported(tmp_path, capsys):
    index = str(tmp_path / "out.npy")
    model = "torchvision:mobilenet_v3_small:false"
    assert leaves(["encode", model, "photos", index]) == 0
    assert leaves(["search", index, "a red disc"]) == 2
    assert "it is a text, and no tower of the index's model takes one" in capsys.readouterr().err
