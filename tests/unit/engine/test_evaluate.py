"""Which weights `vlkd eval` and `vlkd export` take, and where the results of an evaluation go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.page_commands import leaves
from tests.unit.engine.recipes import TEXT, tiny_recipe, train
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.errors import CheckpointError
from vlkd_cli.recipe.load import load_recipe

SHAPES = {"reader": "shapes", "split": "val", "num_samples": 16, "size_px": 32}
EVAL = ["--suite", "retrieval", "--with", "data=" + json.dumps(SHAPES)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps whose second checkpoint is its best, with averages."""
    folder = tmp_path_factory.mktemp("evaluated")
    text = {**TEXT, "head": {"name": "linear", "width": 16}}
    settings = {"steps": 3, "ema": 0.5, "save_every_steps": 1, "keep": 3}
    run = train(folder, tiny_recipe(towers={"text": text}, train=settings), "runs/first")
    checkpoints = run / "checkpoints"
    shutil.copyfile(checkpoints / "step_00000002.pt", checkpoints / "best.pt")
    return folder


@pytest.mark.parametrize(
    ("target", "file", "step"),
    [
        ("runs/first", "best.pt", 2),
        ("runs/first/checkpoints/last.pt", "last.pt", 3),
        ("runs/first/checkpoints/step_00000001.pt", "step_00000001.pt", 1),
    ],
)
def test_eval_prints_which_weights_it_took_and_separates_results_of_other_steps(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    file: str,
    step: int,
) -> None:
    monkeypatch.chdir(trained)
    shutil.rmtree("runs/first/results")
    assert leaves(["eval", target, *EVAL]) == 0
    path = f"runs/first/checkpoints/{file}"
    assert f"Evaluating {path}, step {step}, averaged weights" in capsys.readouterr().out
    assert [found.name for found in Path("runs/first/results").iterdir()] == [f"step_{step:08d}"]


def test_eval_export_and_run_take_the_same_weights(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    best = Checkpoint.load(Path("runs/first/checkpoints/best.pt"))
    expected = best.ema["towers.text.head.linear.weight"]
    assert leaves(["export", "runs/first", "out", "--tower", "text", "--force"]) == 0
    (head,) = (trained / "out" / "text").glob("*head*.safetensors")
    assert any(value.equal(expected) for value in load_file(head).values())
    recipe = load_recipe("runs/first/recipe.yaml")
    towers = load_towers(recipe, Path("runs/first"), best)
    assert towers["text"].get_parameter("head.linear.weight").equal(expected)


def test_a_checkpoint_that_lacks_a_trained_tower_is_not_evaluated(trained: Path) -> None:
    path = trained / "runs" / "first" / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    del content["towers"]["image"]
    torch.save(content, trained / "lacking.pt")
    recipe = load_recipe(str(trained / "runs" / "first" / "recipe.yaml"))
    lacking = Checkpoint.load(trained / "lacking.pt")
    with pytest.raises(
        CheckpointError, match=r"lacking.pt holds no trained tower 'image'\. It holds: text\."
    ):
        load_towers(recipe, trained / "runs" / "first", lacking)


def test_a_trained_tokenizer_travels_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 90, "max_length": 24}
    text = {"builder": "huggingface", "tokenizer": "trained", "config": sizes}
    recipe = tiny_recipe(
        towers={"text": {**text, "head": {"name": "linear", "width": 16}}},
        train={"steps": 2, "save_every_steps": 1, "keep": 2},
    )
    run = train(tmp_path, recipe, "runs/first")
    stored = (run / "tokenizers" / "text.json").read_bytes()
    again = train(tmp_path, recipe, "runs/again")
    assert (again / "tokenizers" / "text.json").read_bytes() == stored

    checkpoint = Checkpoint.load(run / "checkpoints" / "last.pt")
    assert checkpoint.files == {"tokenizers/text.json": stored}
    shutil.rmtree(run / "tokenizers")
    assert leaves(["export", "runs/first", "out", "--tower", "text"]) == 0
    exported = json.loads((tmp_path / "out" / "text" / "tokenizer.json").read_text())
    assert exported["model"]["vocab"] == json.loads(stored)["model"]["vocab"]

    content = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    torch.save({**content, "files": {}}, tmp_path / "lost.pt")
    capsys.readouterr()
    assert leaves(["export", "lost.pt", "lost"]) == 2
    assert "neither in the checkpoint nor in" in " ".join(capsys.readouterr().err.split())
