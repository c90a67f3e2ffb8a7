"""`vlkd synthesize` as a command and in Python: its files, kills, and training on them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlkd_cli
from tests.support.encoders import WORDS, write_encoder
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import train
from vlkd_cli.errors import UserError
from vlkd_cli.reports.csv import read_metrics


def write_corpus(folder: Path, *, queries: int = 12, passages: int = 30) -> Path:
    """Texts of a few words, each passage with others."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{WORDS[n % 20]} {WORDS[n % 7]} {WORDS[n % 11]}" for n in range(passages)]
    (folder / "corpus.txt").write_text("".join(f"{line}\n" for line in lines))
    asked = [f"{WORDS[n % 20]} {WORDS[n % 11]}" for n in range(queries)]
    (folder / "queries.txt").write_text("".join(f"{line}\n" for line in asked))
    return folder


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    model = str(write_encoder(tmp_path / "model"))
    text = {"builder": "huggingface", "model": model, "train": "head"}
    return {
        "towers": {"text": {**text, "head": {"name": "linear", "width": 64, "start": "identity"}}},
        "synthesis": {
            "data": {"reader": "passages", "path": "corpus"},
            "miners": ["text", "bm25"],
            "scorers": ["bm25", "tower"],
            "relations": 4,
            "depth": 10,
        },
    }


def write(recipe: dict[str, Any], name: str = "recipe.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(recipe))
    return name


def test_the_command_writes_what_python_gives_and_shows_how_to_train(
    recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(["synthesize", write(recipe), "out"]) == 0
    message = capsys.readouterr().out
    assert "Relations: out/relations.tsv (36 of 12 queries" in message
    found = vlkd_cli.synthesize("recipe.yaml", "again")
    assert found["counts"]["relations"] == 36 and found["relations"] == "again/relations.tsv"
    assert Path("again/relations.tsv").read_bytes() == Path("out/relations.tsv").read_bytes()
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "relations.tsv",
        "synthesis.json",
    ]
    # The lines that are printed, as a recipe.
    section = yaml.safe_load(message[message.index("data:") :])
    tuned = {**recipe, **section, "train": {"epochs": 8, "batch_size": 4, "log_every_steps": 1}}
    tuned["data"]["workers"] = 0
    run = train(Path.cwd(), {**tuned, "optimizer": {"lr": 0.01, "weight_decay": 0}})
    losses = [value for _, value in read_metrics(run)["train/loss"]]
    assert losses[-1] < losses[0]
    # The run's own weights mine next.
    assert leaves(["synthesize", "run", "better"]) == 0
    assert Path("better/relations.tsv").read_bytes() != Path("out/relations.tsv").read_bytes()


def test_mistakes_are_one_line(recipe: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no section `synthesis`"):
        vlkd_cli.synthesize(write({"towers": recipe["towers"]}, "none.yaml"), "out")
    Path("file").touch()
    with pytest.raises(UserError, match="OUT file: is a file. Name a folder"):
        vlkd_cli.synthesize(write(recipe), "file")
    gone = ["synthesis.data.path=nowhere"]
    with pytest.raises(UserError, match=r"synthesis\.data\.path nowhere: holds no corpus"):
        vlkd_cli.synthesize(write(recipe), "out", overrides=gone)
    Path("corpus/queries.txt").unlink()
    with pytest.raises(UserError, match=r"corpus lacks queries\.txt"):
        vlkd_cli.synthesize(write(recipe), "out")


@pytest.mark.slow
def test_a_killed_synthesis_ends_with_the_same_bytes(recipe: dict[str, Any]) -> None:
    write_corpus(Path("corpus"), queries=5000, passages=60)
    recipe["synthesis"] |= {"miners": ["bm25"], "scorers": ["bm25"]}
    words = [sys.executable, "-m", "vlkd_cli", "synthesize", write(recipe)]
    subprocess.run([*words, "whole"], check=True, capture_output=True)
    for signal_number, first in ((signal.SIGKILL, 0), (signal.SIGTERM, 2)):
        child = subprocess.Popen([*words, "cut"], env=os.environ, stdout=subprocess.DEVNULL)
        part, deadline = Path(f"cut/parts/{first:06}.tsv"), time.monotonic() + 120
        while child.poll() is None and not part.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        child.send_signal(signal_number)
        child.wait(120)
    assert not Path("cut/relations.tsv").exists(), "the test was too slow to interrupt it"
    subprocess.run([*words, "cut"], check=True, capture_output=True)
    for name in ("relations.tsv", "synthesis.json"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()
