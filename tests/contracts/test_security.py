"""Opening what somebody sent runs nothing that is in it; secrets stay out of files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.recipes import SMALL
from vlkd_cli.app import main
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.engine.vectors import Page, write_page
from vlkd_cli.recipe.load import load_recipe, parse_recipe, recipe_from_json
from vlkd_cli.recipe.snapshot import recipe_to_json, recipe_to_yaml, write_snapshot

TEXT = {"builder": "openclip", "config": {"layers": 1, "width": 32, "heads": 2, "embed_dim": 32}}
TRAP = """\
from pathlib import Path
Path("sprung").touch()
from torch import nn
class Head(nn.Module):
    pass
"""


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    """A folder with a package that leaves a file called `sprung` when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trap_package.py").write_text(TRAP)
    yield tmp_path
    sys.modules.pop("trap_package", None)


def hostile(part: str) -> dict[str, Any]:
    """A recipe that runs something in one of its parts."""
    recipe: dict[str, Any] = {
        "towers": {"text": dict(TEXT), "other": {**TEXT, "modality": "text"}},
        "distillers": [{"name": "simreg", "student": "text", "teacher": "other"}],
        "data": {"reader": "shapes", "num_samples": 8},
    }
    if part == "head":
        recipe["towers"]["text"]["head"] = {"name": "trap_package:Head"}
    elif part == "pipe":
        recipe["data"] = {"reader": "webdataset", "path": "pipe:touch sprung", "stream": True}
        recipe["data"] |= {"caption": "txt", "samples_per_epoch": 8}
    elif part == "trust":
        recipe["towers"]["text"] = {"builder": "huggingface", "model": "mine", "trust": True}
    elif part == "sink":
        recipe["reports"] = ["trap_package:Head"]
    return recipe


def checkpoint(path: Path, recipe: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sent = Checkpoint(step=1, recipe=json.dumps(recipe), world_size=1, global_batch=8, towers={})
    shutil.move(sent.save(path.parent / "new"), path)
    return path


def run_folder(path: Path, recipe: dict[str, Any]) -> Path:
    checkpoint(path / "checkpoints" / "last.pt", recipe)
    (path / "recipe.yaml").write_text(json.dumps(recipe))
    return path


def output_of(words: list[str], capsys) -> str:
    """The one line that a command ends in."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    text = capsys.readouterr().err
    assert ended.value.code == 2, text
    assert len(text.splitlines()) == 1, text
    return text


@pytest.mark.parametrize("part", ["head", "pipe", "trust", "sink"])
@pytest.mark.parametrize(
    "command", ["eval file", "eval run", "export file", "export run", "resume"]
)
def test_a_checkpoint_and_a_run_run_nothing(trap, capsys, part, command):
    file = checkpoint(trap / "sent" / "x.pt", hostile(part))
    folder = run_folder(trap / "run", hostile(part))
    words = {
        "eval file": ["eval", str(file), "--suite", "retrieval"],
        "eval run": ["eval", str(folder), "--suite", "retrieval"],
        "export file": ["export", str(file), "out"],
        "export run": ["export", str(folder), "out"],
        "resume": ["train", "--resume", str(folder)],
    }[command]
    line = output_of(words, capsys)
    assert "Add --trust if you trust who made it." in line
    assert not Path("sprung").exists()
    assert "trap_package" not in sys.modules


def test_a_tower_out_of_a_run_runs_nothing_unless_the_recipe_trusts_it(trap, capsys):
    run_folder(trap / "run", hostile("head"))
    recipe = hostile("")
    recipe["towers"]["other"] = {"run": "run", "tower": "text", "modality": "text", "train": "none"}
    Path("mine.yaml").write_text(json.dumps(recipe))
    line = output_of(["train", "mine.yaml", "--dry-run"], capsys)
    assert "towers.text.head.name: 'trap_package:Head' names code from outside vlkd." in line
    assert "Add `trust: true` next to the `run:` of tower 'other'" in line
    assert not Path("sprung").exists()
    output_of(["train", "mine.yaml", "--dry-run", "--set", "towers.other.trust=true"], capsys)
    assert Path("sprung").exists()


def test_trusting_the_command_does_not_trust_what_its_recipe_takes_from_elsewhere(trap, capsys):
    run_folder(trap / "inner", hostile("head"))
    outer = hostile("")
    outer["towers"]["other"] = {
        "run": "inner",
        "tower": "text",
        "modality": "text",
        "train": "none",
    }
    outer["distillers"] = []
    file = checkpoint(trap / "outer.pt", outer)
    for words in (
        ["eval", str(file), "--suite", "sts"],
        ["eval", str(file), "--trust", "--suite", "sts"],
    ):
        assert "Add `trust: true` next to the `run:`" in output_of(words, capsys)
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    "named",
    [
        {"overrides": ["towers.text.head.name=trap_package:Head"]},
        {"overrides": ["towers.text={builder: huggingface, model: mine, trust: true}"]},
        {"target": "mine.yaml"},
    ],
)
def test_an_index_runs_nothing(trap, capsys, named):
    Path("mine.yaml").write_text(json.dumps(hostile("head")))
    np.save("x.npy", np.zeros((1, 2), np.float32))
    facts: dict[str, Any] = {"target": "quickstart", "overrides": [], "modality": "text", **named}
    facts |= dict.fromkeys(("tower", "digest", "precision", "fingerprint"), "a")
    facts |= {"model": {}, "width": 2, "normalized": True, "dtype": "float32"}
    facts |= {"input": {"path": "-", "column": None, "reader": {}}, "skipped": [], "ids": ["a"]}
    write_page(Page(**facts), Path("x.npy.json"))
    assert "Add --trust if you trust who made it." in output_of(["search", "x.npy", "q"], capsys)
    assert not Path("sprung").exists()
    if "target" in named:
        output_of(["search", "x.npy", "q", "--trust"], capsys)
        assert Path("sprung").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "mine.yaml", "--trust", "--dry-run"],
        ["train", "mine.yaml", "--resume", "run", "--trust"],
        ["eval", "mine.yaml", "--suite", "sts", "--trust"],
    ],
)
def test_trust_is_refused_where_it_has_no_effect(trap, capsys, words):
    Path("mine.yaml").write_text(json.dumps(hostile("")))
    assert "--trust has no effect" in output_of(words, capsys)


def test_modules_next_to_a_recipe_are_not_imported(tmp_path):
    (tmp_path / "recipe.yaml").write_text(SMALL)
    for name in ("yaml", "typer", "click", "pydantic", "typing", "torch", "json", "rich"):
        (tmp_path / f"{name}.py").write_text(f"open('sprung_{name}', 'w')\n")
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_cli", "recipes", "check", "recipe.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "recipe.yaml: fine\n"), done.stderr
    assert list(tmp_path.glob("sprung*")) == []


SECRET = SMALL.replace(
    "{reader: shapes}",
    "{reader: csv, path: 'https://me:${SECRET}@x/${DATA:-a}.csv', image_root: '${SECRET}'}",
)


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")


def test_secrets_stay_out_of_snapshots_and_checkpoints(secret, tmp_path):
    read = parse_recipe(SECRET + "train: {epochs: ${N:-3}, steps: ${N:-4}}\n", "r")
    assert read.data is not None
    assert read.data.keys["path"] == "https://me:hunter2@x/a.csv"
    write_snapshot(read, tmp_path)
    for text in (
        recipe_to_yaml(read),
        recipe_to_json(read),
        (tmp_path / "recipe.yaml").read_text(),
    ):
        assert "hunter2" not in text
        assert "https://me:${SECRET}@x/${DATA:-a}.csv" in text
        # Numbers stay as they were, so that a resumed run finds them.
        assert "${N" not in text
    assert load_recipe(tmp_path / "recipe.yaml") == read
    assert recipe_from_json(recipe_to_json(read)) == read


def test_a_text_that_looks_like_a_number_stays_text(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "12345")
    read = parse_recipe(SECRET.replace("path: 'https", "sep: '${SECRET}', path: 'https"), "r")
    write_snapshot(read, tmp_path)
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == read
    assert again.data is not None
    assert again.data.keys["sep"] == "12345"


def test_secrets_stay_out_of_messages(secret):
    from vlkd_cli.errors import RecipeError

    with pytest.raises(RecipeError) as caught:
        parse_recipe(SECRET + "train: {batch_size: '${SECRET}', precision: ${SECRET}}\n", "r")
    assert "hunter2" not in str(caught.value)
    assert "got the string '${SECRET}'" in str(caught.value)


def test_secrets_stay_out_of_what_is_printed_and_logged(secret, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOLDER", "somewhere")
    Path("r.yaml").write_text(
        SMALL.replace("{reader: shapes}", "{reader: csv, path: '${FOLDER}/${SECRET}.csv'}")
    )
    line = output_of(["train", "r.yaml", "--run", "run"], capsys)
    assert "somewhere/${SECRET}.csv" in line
    for file in Path("run").rglob("*"):
        assert file.is_dir() or b"hunter2" not in file.read_bytes(), file
    assert "${SECRET}" in Path("run/state.json").read_text()
