"""`vlkd export --format onnx`: what it writes of a run, what it compares and what it prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.page_commands import leaves
from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe, train
from vlkd_cli import api

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
RETRIEVAL = {
    "suite": "retrieval",
    "data": {"reader": "shapes", "split": "val", "num_samples": 24, "size_px": 32},
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `runs/first` of two towers of one width."""
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "runs").mkdir()
    towers = {"image": IMAGE, "text": {**TEXT, "head": {"name": "linear", "width": 16}}}
    train(folder, tiny_recipe(towers=towers, train={"steps": 2}), "runs/first")
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def test_towers_and_their_pair_give_the_vectors_of_encode(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(["export", "first", "out", "--format", "onnx", "--normalize"]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (here / "out").iterdir()) == [
        "dual_encoder",
        "image",
        "text",
    ]
    # Five rows that were traced, the longest, one row, and eight captions of the recipe's data.
    assert "text, note: compared with the tower: cosine >= 1.0000000, largest" in printed
    assert printed.count(", 15 rows.") == 2 and "recipe:" not in printed
    assert "session = onnxruntime.InferenceSession('out/text/model.onnx')" in printed
    page = yaml.safe_load((here / "out" / "dual_encoder" / "vlkd_tower.yaml").read_text())
    assert page["logit_scale"] == pytest.approx(1 / 0.07, rel=0.1)
    assert len(page["recipe_digest"]) == 64 and page["trained"] == "run first, step 2"
    encoder = api.load("runs/first", "text", device="cpu")
    words = ["a red circle", "two blue squares"]
    from transformers import AutoTokenizer

    given = AutoTokenizer.from_pretrained(here / "out" / "text")(
        words, padding=True, return_tensors="np"
    )
    session = onnxruntime.InferenceSession(here / "out" / "text" / "model.onnx")
    found = session.run(None, {"input_ids": given["input_ids"]})[0]
    np.testing.assert_allclose(found, encoder.encode(words), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_both_accuracies_of_8_bit_weights_are_printed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evals = f"evals=[{yaml.safe_dump(RETRIEVAL, default_flow_style=True, width=1000).strip()}]"
    words = ["export", "first", "out8", "--format", "onnx", "--int8"]
    assert leaves([*words, "--set", evals]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Accuracy of 8-bit weights"
    row = next(line.split() for line in lines if line.startswith("retrieval"))
    full, small, change = (float(value) for value in row[3:6])
    assert row[:3] == ["retrieval", "shapes", "mean_recall"]
    assert 0 < full < 1 and small - full == pytest.approx(change, abs=2e-4)


def test_without_evaluations_the_vectors_of_8_bit_weights_are_compared(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    words = ["export", "first", "alone", "--format", "onnx", "--int8", "--tower", "image"]
    assert leaves(words) == 0
    captured = capsys.readouterr()
    assert "accuracy of 8-bit weights was not measured: the recipe has no `evals:`" in captured.err
    assert "image, int8 next to fp32: cosine >= 0.9" in captured.out
    assert (here / "alone" / "image" / "model.int8.onnx").is_file()
    assert [path.name for path in (here / "alone").iterdir()] == ["image"]


@pytest.mark.parametrize("option", ["--normalize", "--int8"])
def test_options_of_onnx_are_refused_without_it(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(["export", "first", "plain", option]) == 2
    line = capsys.readouterr().err
    assert line == (
        f"{option} has no effect on --format library. Leave it out, or add --format onnx.\n"
    )
