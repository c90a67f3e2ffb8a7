"""`vlkd encode`: the vectors of the Python API in files, for every kind of input; interruptions,
unreadable items and mistakes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlkd_cli
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import tiny_recipe, train
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.vectors import read_vectors
from vlkd_cli.towers.tower import Tower

TEXTS = [f"a {color} {shape}" for color in ("red", "dark blue") for shape in ("disc", "square")]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run, and inputs of every kind."""
    folder = tmp_path_factory.mktemp("home")
    train(folder, tiny_recipe(data={"num_samples": 16}, train={"epochs": 1}), "runs/first")
    write_inputs(folder)
    return folder


def write_inputs(folder: Path) -> None:
    (folder / "photos" / "sub").mkdir(parents=True)
    shapes = Shapes(num_samples=90, size_px=24, split="val")
    for index in range(90):
        place = "sub/" if index % 3 == 0 else ""
        shapes.image(index).save(folder / "photos" / f"{place}{index:02}.png")
    (folder / "texts.txt").write_text("\n".join([*TEXTS, "", TEXTS[0]]) + "\n")
    rows = [
        ("key", "path", "words"),
        *((f"k{n}", f"photos/{n + 1:02}.png", TEXTS[n]) for n in (0, 1, 3)),
    ]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ("k4", "photos/gone.png", " ")])
    (folder / "utf16.csv").write_text("words\na red disc\n", encoding="utf-16")
    (folder / "beir").mkdir()
    records = [{"_id": f"d{n}", "title": "T", "text": text} for n, text in enumerate(TEXTS)]
    records.append({"_id": "d9", "title": "", "text": ""})
    lines = [*map(json.dumps, records), '{"_id": "d10"}']
    (folder / "beir" / "corpus.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def encoder(home: Path) -> Any:
    return vlkd_cli.load(home / "runs" / "first")


def encoded(out: Path, *words: str) -> tuple[np.ndarray, Any]:
    assert leaves(["encode", *words, str(out)]) == 0
    assert not out.with_name(f"{out.name}.partial").exists()
    return read_vectors(out)


def test_a_folder_of_images_gives_the_vectors_of_the_python_api(encoder, tmp_path):
    rows, page = encoded(tmp_path / "out.npy", "runs/first", "photos")
    files = sorted(Path("photos").rglob("*.png"))
    assert page.ids == [str(file.relative_to("photos")) for file in files] and len(files) == 90
    np.testing.assert_array_equal(rows, encoder.encode(files))
    assert (page.tower, page.digest, page.width) == ("image", encoder["image"].digest, 16)
    assert page.model["step"] == 2 and page.normalized
    assert not (tmp_path / "out.npy.skipped.csv").exists()


@pytest.mark.parametrize(
    ("words", "texts", "ids", "skipped"),
    [
        (
            ["texts.txt"],
            [*TEXTS, TEXTS[0]],
            ["line 1", "line 2", "line 3", "line 4", "line 6"],
            [["line 5", "is empty"]],
        ),
        (
            ["table.csv", "--tower", "text", "--column", "words", "--reader", "id=key"],
            [TEXTS[0], TEXTS[1], TEXTS[3]],
            ["k0", "k1", "k3"],
            [["k4", "is empty"]],
        ),
        (
            ["beir"],
            [f"T {text}" for text in TEXTS],
            ["d0", "d1", "d2", "d3"],
            [["d9", "is empty"], ["d10", "the record has no 'text'"]],
        ),
        (
            ["beir/corpus.jsonl", "--reader", "title=false"],
            TEXTS,
            ["d0", "d1", "d2", "d3"],
            [["d9", "is empty"], ["d10", "the record has no 'text'"]],
        ),
    ],
)
def test_texts_of_every_kind_of_file(words, texts, ids, skipped, encoder, tmp_path, capsys):
    rows, page = encoded(tmp_path / "out.npy", "runs/first", *words)
    np.testing.assert_array_equal(rows, encoder.encode(texts))
    assert page.ids == ids
    with (tmp_path / "out.npy.skipped.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == skipped
    total = len(ids) + len(skipped)
    assert f"{len(skipped)} of {total} items could not be encoded" in capsys.readouterr().err


def test_images_of_a_table_and_of_a_list(encoder, tmp_path):
    words = ["--tower", "image", "--column", "path"]
    rows, page = encoded(tmp_path / "out.npy", "runs/first", "table.csv", *words)
    files = [Path(f"photos/{number:02}.png") for number in (1, 2, 4)]
    np.testing.assert_array_equal(rows, encoder.encode(files))
    assert page.skipped == [3] and "photos/gone.png: No such" not in page.ids
    Path("list.txt").write_text("photos/01.png\nphotos/02.png\nphotos/04.png\n")
    again, _ = encoded(tmp_path / "list.npy", "runs/first", "list.txt", "--tower", "image")
    np.testing.assert_array_equal(again, rows)


def test_unreadable_images_are_listed_and_the_rest_is_encoded(encoder, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("01.png", "02.png"):
        (folder / name).write_bytes((Path("photos") / name).read_bytes())
    (folder / "00.jpg").write_bytes(b"no picture")
    (folder / "03.png").write_bytes(b"")
    rows, page = encoded(tmp_path / "out.npy", "runs/first", str(folder))
    np.testing.assert_array_equal(rows, encoder.encode([folder / "01.png", folder / "02.png"]))
    assert (page.ids, page.skipped) == (["01.png", "02.png"], [0, 3])
    listed = (tmp_path / "out.npy.skipped.csv").read_text().splitlines()
    assert listed[1] == "00.jpg,it is not an image in a supported format"
    assert listed[2] == "03.png,the file is empty"
    assert "2 of 4 items could not be encoded, e.g. 00.jpg" in capsys.readouterr().err
    for name in ("01.png", "02.png"):
        (folder / name).write_bytes(b"x")
    assert leaves(["encode", "runs/first", str(folder), str(tmp_path / "none.npy")]) == 2
    assert "none of 4 images can be read; the first: 00.jpg" in capsys.readouterr().err
    assert not (tmp_path / "none.npy").exists()


def test_another_output_is_that_of_the_python_api(encoder, tmp_path):
    rows, page = encoded(tmp_path / "out.npy", "runs/first", "photos/sub", "--output", "tokens")
    files = sorted(Path("photos/sub").glob("*.png"))
    np.testing.assert_array_equal(rows, encoder.encode(files, "image", output="tokens"))
    assert rows.shape == (30, 16, 16) and (page.output, page.positions) == ("tokens", 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1, rtol=1e-5)
    assert leaves(["search", str(tmp_path / "out.npy"), "a disc"]) == 2


def test_raw_vectors_half_precision_and_parquet(encoder, tmp_path):
    raw, page = encoded(tmp_path / "raw.npy", "runs/first", "texts.txt", "--raw")
    np.testing.assert_array_equal(raw, encoder.encode([*TEXTS, TEXTS[0]], normalize=False))
    assert not page.normalized
    half, _ = encoded(tmp_path / "half.npy", "runs/first", "texts.txt", "--dtype", "float16")
    full = encoder.encode([*TEXTS, TEXTS[0]])
    np.testing.assert_array_equal(half, full.astype(np.float16))
    parquet = pytest.importorskip("pyarrow.parquet")
    assert leaves(["encode", "runs/first", "texts.txt", str(tmp_path / "out.parquet")]) == 0
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist()[-1] == "line 6"
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), full)
    assert json.loads(table.schema.metadata[b"vlkd"])["tower"] == "text"


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_pipe_takes_texts_and_gives_an_array(encoder, monkeypatch, capfdbinary, tmp_path):
    piped(monkeypatch, "\n".join(TEXTS).encode())
    assert leaves(["encode", "runs/first", "-", "-"]) == 0
    out, err = capfdbinary.readouterr()
    np.testing.assert_array_equal(np.load(io.BytesIO(out)), encoder.encode(TEXTS))
    assert b"Encoding with tower 'text' of runs/first/checkpoints/last.pt, step 2" in err
    piped(monkeypatch, "\n".join(TEXTS).encode())
    _, page = encoded(tmp_path / "out.npy", "first", "-")
    assert page.texts == TEXTS


def test_an_empty_line_of_a_pipe_is_refused_since_rows_have_no_ids(monkeypatch, capfdbinary):
    piped(monkeypatch, b"one\n\ntwo\n")
    assert leaves(["encode", "runs/first", "-", "-"]) == 2
    out, err = capfdbinary.readouterr()
    assert out == b"" and b"standard input: line 2: is empty" in err


def test_an_interrupted_command_leaves_the_same_bytes_when_it_is_repeated(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("vlkd_cli.features.table.BATCHES_PER_WINDOW", 1)
    words = ["encode", "runs/first", "photos"]
    assert leaves([*words, str(tmp_path / "whole.npy")]) == 0
    run, calls = Tower.features, 0

    def stopping(tower: Tower, inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return run(tower, inputs)

    monkeypatch.setattr(Tower, "features", stopping)
    assert leaves([*words, str(tmp_path / "parts.npy")]) == 128 + signal.SIGINT
    assert "Run the same command to resume" in capsys.readouterr().err
    assert not (tmp_path / "parts.npy").exists()
    calls = 2
    assert leaves([*words, str(tmp_path / "parts.npy")]) == 0
    assert calls == 3, "of two batches one was left"
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    pages = [json.loads((tmp_path / f"{name}.npy.json").read_text()) for name in ("whole", "parts")]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_completes(tmp_path):
    import shutil

    for copy in range(30):
        shutil.copytree("photos", tmp_path / "many" / str(copy))
    words = [sys.executable, "-m", "vlkd_cli", "encode", "runs/first", str(tmp_path / "many")]
    out = tmp_path / "out.npy"
    process = subprocess.Popen([*words, str(out)], stderr=subprocess.DEVNULL)
    checks = out.with_name("out.npy.partial")
    while process.poll() is None and not [
        path for path in checks.rglob("checks.npy") if np.load(path).any()
    ]:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    subprocess.run([*words, str(out)], check=True)
    subprocess.run([*words, str(tmp_path / "whole.npy")], check=True)
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["photos", "texts.txt"])
def test_two_processes_write_the_bytes_of_one(source, tmp_path):
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    assert leaves(["encode", "runs/first", source, str(one)]) == 0
    assert leaves(["encode", "runs/first", source, str(two), "--cpu-workers", "2"]) == 0
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("nowhere photos x.npy", "run folder, checkpoint or recipe"),
        ("runs/first gone x.npy", "INPUT gone: no such file or folder"),
        ("runs/first photos/01.png x.npy", "it is a single file of images. Name its folder, or"),
        ("runs/first photos x.txt", "OUT x.txt: vectors are written to .npy or .parquet files"),
        ("runs/first photos gone/x.npy", "OUT gone/x.npy: no folder"),
        ("runs/first photos x.npy --tower txt", "there is no tower 'txt'"),
        ("runs/first photos x.npy --tower text", "photos holds no corpus.jsonl"),
        ("runs/first photos x.npy --column a", "--column has no effect on photos"),
        ("runs/first texts.txt x.npy --reader sep=a", "--reader has no effect on texts.txt"),
        ("runs/first beir x.npy --reader sep=a", "--reader has no effect on beir but for title"),
        ("runs/first photos x.npy --reader sep", "--reader sep: expected KEY=VALUE"),
        ("runs/first photos x.npy --reader sep=a", "sep"),
        ("runs/first table.csv x.npy", "table.csv may hold texts or paths. Choose with --tower"),
        ("runs/first table.csv x.npy --tower text", "which column holds the texts? Give --column"),
        ("runs/first table.csv x.npy --tower text --column w", "has no column 'w' (--column)"),
        ("runs/first utf16.csv x.npy --tower text", "Set --reader encoding, or --reader quotes"),
        ("runs/first photos x.npy --reader reader=shapes", "this reader takes no path"),
        ("runs/first tiny.yaml x.npy", "INPUT tiny.yaml: texts are read from"),
        ("runs/first - x.npy --tower image", "standard input holds texts"),
        ("a b c d.npy", "give one target, one input and one output, not 4 words"),
        ("runs/first photos x.npy --set towers.image.x=1", "towers.image.x"),
        ("runs/first - x.npy --cpu-workers 2", "standard input and output belong to one process"),
        ("runs/first photos x.npy --gpus 64", "--gpus 64"),
        ("runs/first photos x.npy --output tokns", "no output 'tokns'. Did you mean 'tokens'?"),
        ("runs/first photos x.parquet --output tokens", "Write a .npy file."),
        ("runs/first photos x.npy --pictures y", "so that it paints no pixels."),
    ],
)
def test_a_mistake_ends_in_one_line_and_leaves_nothing(words, line, home, monkeypatch, capsys):
    piped(monkeypatch, b"a\n")
    before = sorted(path.name for path in home.iterdir())
    assert leaves(["encode", *words.split()]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in last
    assert sorted(path.name for path in home.iterdir()) == before


def test_a_folder_without_images_is_refused(tmp_path, capsys):
    words = ["encode", "torchvision:mobilenet_v3_small:false", "beir", str(tmp_path / "x.npy")]
    assert leaves(words) == 2
    assert "it has no images" in capsys.readouterr().err


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    import errno

    def full(*words: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vlkd_cli.engine.vectors.np.lib.format.write_array_header_1_0", full)
    assert leaves(["encode", "runs/first", "texts.txt", str(tmp_path / "x.npy")]) == 2
    assert "x.npy cannot be written: No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "x.npy").exists()
