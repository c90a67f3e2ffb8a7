"""No setting without effect: every key of every component, every key of a recipe's sections and
every option of every command changes something, or ends in one line.

Components are taken from the catalogue and values from the types of their keys, so a new one is
tested without a new line here; the few keys that need particular values have them in VALUES.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from tests.support.data_sets import READER_DATA
from tests.support.fake_trackers import fake_trackers
from tests.support.page_commands import Done, leaves
from tests.support.section_changes import CHANGES, EVALS
from tests.support.settings import digest, names_read, other_values, parts_of
from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe, train, write_recipe
from vlkd_cli import catalog
from vlkd_cli.app import build_app, main
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.errors import MissingPackageError, UserError
from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.params import Key, signature_of
from vlkd_cli.recipe.reference import SECTIONS
from vlkd_cli.recipe.shape import section_keys
from vlkd_cli.reports.csv import read_metrics

COMPONENTS = [
    (kind, name, key)
    for kind, entries in catalog.CATALOG.items()
    for name in entries
    for key in signature_of(kind, name).keys
]

BASE: dict[tuple[str, str], dict[str, Any]] = {
    ("builder", "torchvision"): {"model": "resnet18"},
    ("builder", "timm"): {"model": "resnet10t"},
    ("builder", "sbert"): {"model": "x"},
    ("distiller", "metric"): {"loss": "TripletMarginLoss"},
    ("head", "mlp"): {"width": 4, "layers": 3},
    ("head", "blocks"): {"heads": 2},
    ("adapter", "mtl_lora"): {"tasks": ["a", "b"], "task": "a"},
    ("sink", "wandb"): {"mode": "offline"},
}
"""Keys that a component needs before another key of it can matter."""

PROBE, TUNED = {"mode": "linear_probe"}, {"mode": "fine_tune", "tune": True}
VALUES: dict[tuple[str, str, str], dict[str, Any]] = {
    ("adapter", "prompt_tuning", "init_text"): {"init": "text", "init_text": "a photo"},
    ("adapter", "mtl_lora", "tasks"): {"tasks": ["a", "b", "c"], "task": "a"},
    ("adapter", "mtl_lora", "task"): {"task": "b"},
    ("distiller", "metric", "loss"): {"loss": {"name": "CircleLoss", "m": 0.25}},
    ("distiller", "metric", "miner"): {"miner": "TripletMarginMiner"},
    ("distiller", "metric", "distance"): {"distance": "CosineSimilarity"},
    ("distiller", "reinforced", "logit_bias"): {"loss": "sigmoid", "logit_bias": -5.0},
    ("distiller", "reinforced", "teacher_logit_biases"): {
        "loss": "sigmoid",
        "teacher_logit_biases": [-5.0],
    },
    ("distiller", "reinforced", "sigmoid_targets"): {
        "loss": "sigmoid",
        "sigmoid_targets": "probability",
    },
    **{
        ("distiller", name, key): {"positives": "caption", key: value}
        for name in ("infonce", "siglip")
        for key, value in (("positive_weight", 0.5), ("grade", "x"))
    },
    ("distiller", "score_regression", "scale"): {"loss": "ranking", "scale": 2.0},
    ("distiller", "triplet", "miner_margin"): {"miner": "all", "miner_margin": 0.5},
    ("distiller", "swav", "queue_from_epoch"): {"queue_size": 8, "queue_from_epoch": 2},
    ("augment", "standard", "blur_sigma"): {"blur": 0.5, "blur_sigma": [0.1, 0.5]},
    ("head", "linear", "start"): {"width": 24, "start": "identity"},
    ("suite", "linear_probe", "text_start"): {
        "protocol": "elevater",
        "features": "head",
        "text_start": True,
    },
    ("suite", "elevater", "tune"): {**PROBE, "tune": True},
    ("suite", "elevater", "lr"): {**PROBE, "tune": False, "lr": 0.5},
    ("suite", "elevater", "weight_decay"): {**PROBE, "tune": False, "weight_decay": 0.5},
    ("suite", "elevater", "protocol"): {**PROBE, "protocol": "elevater_paper"},
    ("suite", "elevater", "start"): {**PROBE, "start": "random"},
    ("suite", "elevater", "features"): {**PROBE, "features": "backbone"},
    ("suite", "elevater", "sweep_epochs"): {**TUNED, "sweep_epochs": 3},
    ("suite", "elevater", "epochs"): {**PROBE, "epochs": 3},
    ("suite", "search", "gain"): {"relevant": "judged.tsv", "gain": "binary"},
    ("suite", "sts", "sets"): {"sets": ["STS12"]},
    ("suite", "senteval", "tasks"): {"tasks": ["MR"]},
    ("suite", "senteval", "dropout"): {"hidden": 5, "dropout": 0.1},
    ("mask", "random", "unit_px"): {"unit_px": 32},
    ("mask", "block", "probability"): {"share": [0.1, 0.5], "probability": 0.25},
    ("sink", "wandb", "mode"): {"mode": "disabled"},
}
"""Keys, with the other keys that they need, whose types alone do not tell a value that matters."""

EXCEPTIONS: dict[tuple[str, str, str], str] = {
    ("reader", "folder", "missing"): "matters for images without captions, see test_readers.py",
}
"""Keys that are not tried, and why."""


GRID = Grid(14, 14, 16)


class Recorder:
    """Replaces a run of Weights & Biases."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings


def made(kind: str, name: str, keys: dict[str, Any], folder: Path) -> Any:
    """The component with what the engine supplies, its random weights from one seed."""
    torch.manual_seed(0)
    if kind == "reader":
        return open_reader({"reader": name, **keys})
    supplied = {"token_width": 24, "width_in": 24, "grid": GRID, "folder": folder}
    taken = inspect.signature(catalog.load(kind, name)).parameters
    return make(kind, name, keys, *(value for key, value in supplied.items() if key in taken))


def base_of(kind: str, name: str, folder: Path) -> dict[str, Any]:
    """Keys that a component can be made with: those of BASE, and the first values of its required
    keys that go together."""
    base = BASE.get((kind, name), {})
    required = [
        key for key in signature_of(kind, name).keys if key.required and key.name not in base
    ]
    for values in itertools.islice(itertools.product(*map(other_values, required)), 50):
        keys = {**base, **{key.name: value for key, value in zip(required, values, strict=True)}}
        try:
            made(kind, name, keys, folder)
        except (UserError, ValueError):
            continue
        return keys
    return base


@pytest.fixture(scope="module")
def reader_keys(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The keys of a small data set for every reader."""
    found = {}
    for name, write in READER_DATA.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = {key: value for key, value in write(folder).items() if key != "reader"}
    return found


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    COMPONENTS,
    ids=lambda part: part.name if isinstance(part, Key) else part,
)
def test_every_key_of_a_component_reaches_what_it_is_made_of(
    kind: str,
    name: str,
    key: Key,
    reader_keys: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wandb.init", Recorder)
    for module, fake in fake_trackers().items():
        monkeypatch.setitem(sys.modules, module, fake)
    place = (kind, name, key.name)
    if place in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[place])
    keys = dict(reader_keys[name] if kind == "reader" else base_of(kind, name, tmp_path))
    keys |= {other: value for other, value in VALUES.get(place, {}).items() if other != key.name}
    try:
        before = parts_of(made(kind, name, keys, tmp_path))
    except MissingPackageError as error:
        pytest.skip(str(error))
    except UserError:
        # Without the key, these keys end in one line.
        before = {}
    values = [VALUES[place][key.name]] if place in VALUES else list(other_values(key))
    refused = ""
    for value in values:
        try:
            after = parts_of(made(kind, name, {**keys, key.name: value}, tmp_path))
        except (UserError, ValueError) as error:
            refused = str(error)
            continue
        changed = {part for part in {**before, **after} if before.get(part) != after.get(part)}
        if changed:
            read = {part for part in changed if part.rpartition(".")[2] in names_read()}
            assert read, f"{key.name}: {value!r} changes {sorted(changed)}, which nothing reads"
            return
    # What a reader accepts depends on its data, and a component cannot be without a required key.
    may_be_refused = kind == "reader" or key.required
    assert refused and may_be_refused, f"no value of {values} changes anything ({refused})"


# -- the sections of a recipe ----------------------------------------------------------------------


NOT_RUN: dict[tuple[str, str], str] = {
    ("towers", "shuffle"): "batch norms of several processes, see test_momentum.py",
    (
        "data",
        "prefetch",
    ): "only how far workers are ahead; refused without workers, see test_checks",
    ("data", "workers"): "the same samples by other processes, see test_loader",
    (
        "train",
        "compile",
    ): "the same numbers, faster; see test_a_compiled_composition_trains_the_same",
    **{
        ("synthesis", key.name): "of vlkd synthesize; see tests/unit/synthesis/test_run.py"
        for key in section_keys(SECTIONS["synthesis"])
    },
    ("train", "save_in_background"): "the same checkpoints; see tests/unit/engine/test_saving.py",
    ("train", "heartbeat_seconds"): "of several processes; see tests/unit/engine/test_nodes.py",
    ("train", "chunk"): "the same numbers in less memory; see tests/contracts/test_chunks.py",
    ("train", "checkpoint_activations"): "the same numbers in less memory; see test_blocks.py",
    ("train", "channels_last"): "the same numbers up to rounding, faster on GPUs; see tests/gpu",
}


def ending(folder: Path, sections: dict[str, Any]) -> dict[str, str]:
    """What a tiny run leaves: weights, metrics and files, or the line that it ends in."""
    recipe: dict[str, Any] = copy.deepcopy(
        tiny_recipe(data={"num_samples": 16}, train={"epochs": 1}, schedule={}, optimizer={})
    )
    for name, section in copy.deepcopy(sections).items():
        merges = isinstance(section, dict) and name != "towers"
        recipe[name] = {**recipe.get(name, {}), **section} if merges else section
    if recipe["data"].get("reader") is None:
        recipe["data"] = {"readers": recipe["data"]["readers"], "workers": 0}
    try:
        run = train(folder, recipe)
    except UserError as error:
        return {"line": str(error).replace(str(folder), "")}
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    found = {f"weights of {name}": digest(value) for name, value in state["towers"].items()}
    found["average"] = digest(state["ema"])
    for name, values in read_metrics(run).items():
        if not name.startswith(("train/samples", "train/data_wait", "train/seconds")):
            found[name] = repr(values)
    found["files"] = repr(sorted(path.name for path in run.rglob("*")))
    found["elsewhere"] = repr(sorted(path.name for path in folder.iterdir()))
    return found


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, str]]:
    """Outcomes by what was called, so that what many settings are compared with is called once."""
    return {}


SECTION_KEYS = [
    (section, key.name) for section, model in SECTIONS.items() for key in section_keys(model)
]


@pytest.mark.parametrize(("section", "key"), SECTION_KEYS)
def test_every_key_of_a_section_changes_a_run_or_ends_in_one_line(
    section: str,
    key: str,
    seen: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (section, key) in NOT_RUN:
        pytest.skip(NOT_RUN[section, key])
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    change = CHANGES[section][key]
    outcomes = []
    for name, sections in (("before", change.base), ("after", {**change.base, **change.changed})):
        if repr(sections) not in seen:
            folder = tmp_path / name
            folder.mkdir()
            monkeypatch.chdir(folder)
            seen[repr(sections)] = ending(folder, sections)
        outcomes.append(seen[repr(sections)])
    before, after = outcomes
    assert "line" not in before or "max_nonfinite" in key, before
    assert before != after


# -- the options of commands -----------------------------------------------------------------------

TRAIN, EVAL = "train tiny.yaml", "eval runs/a --suite retrieval"
MINE = "mine runs/a out.csv"
CARD = "export runs/a out --license mit"
ENCODE, SEARCH = "encode runs/a words.txt out.npy", "search words.npy disc"
WITH = "--with 'data={reader: shapes, num_samples: 6, size_px: 32}'"
TABLE = f"{EVAL} --datasets lists.yaml:mine --table x.md"
SWEEP = "sweep tiny.yaml --list --grid optimizer.lr=[1e-3,2e-3]"
SAMPLED = "sweep tiny.yaml --list --random 2 --draw 'optimizer.lr=log(1e-4,1e-3)'"
OPTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "sweep": {
        "recipe": (SWEEP, SWEEP.replace("tiny.yaml", "nothing.yaml")),
        "--grid": (SWEEP, f"{SWEEP} --grid train.epochs=[1,2]"),
        "--seeds": (SWEEP, f"{SWEEP} --seeds 4,5"),
        "--random": (SAMPLED, SAMPLED.replace("--random 2", "--random 3")),
        "--draw": (SAMPLED, f"{SAMPLED} --draw 'train.ema=uniform(0.5,0.9)'"),
        "--search-seed": (SAMPLED, f"{SAMPLED} --search-seed 3"),
        "--set": (SWEEP, f"{SWEEP} --set train.epochs=x"),
        "--folder": (SWEEP, f"{SWEEP} --folder here"),
        "--jobs": (SWEEP, f"{SWEEP} --jobs 2"),
        "--gpus-per-job": (SWEEP, f"{SWEEP} --gpus-per-job 2"),
        "--index": (SWEEP, f"{SWEEP} --index 1"),
        "--list": (f"{SWEEP} --dry-run", SWEEP.replace("--list", "--dry-run")),
        "--dry-run": (SWEEP, f"{SWEEP} --dry-run"),
        "--runs": (SWEEP, f"{SWEEP} --runs here"),
    },
    "train": {
        "recipe": ("train", "train tiny.yaml"),
        "--set": (TRAIN, f"{TRAIN} --set train.seed=5"),
        "--gpus": (TRAIN, f"{TRAIN} --gpus 64"),
        "--cpu-workers": (TRAIN, f"{TRAIN} --cpu-workers 3"),
        "--resume": (TRAIN, f"{TRAIN} --resume runs/a"),
        "--run": (TRAIN, f"{TRAIN} --run here"),
        "--runs": (TRAIN, f"{TRAIN} --runs here"),
        "--dry-run": (TRAIN, f"{TRAIN} --dry-run"),
        "--memory": (f"{TRAIN} --dry-run", f"{TRAIN} --dry-run --memory 24GiB"),
        "--nodes": (TRAIN, f"{TRAIN} --nodes 2"),
        "--node-rank": (TRAIN, f"{TRAIN} --node-rank 1"),
        "--rendezvous": (TRAIN, f"{TRAIN} --rendezvous a:1"),
        "--max-restarts": (TRAIN, f"{TRAIN} --max-restarts 2"),
        "--trust": (TRAIN, f"{TRAIN} --trust"),
        "--quiet": (TRAIN, f"{TRAIN} --quiet"),
        "--verbose": (TRAIN, f"{TRAIN} --verbose"),
    },
    "eval": {
        "targets": (f"eval --suite retrieval {WITH}", f"eval runs/b --suite retrieval {WITH}"),
        "--table": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --table x.csv"),
        "--layout": (TABLE, f"{TABLE} --layout long"),
        "--metrics": (TABLE, f"{TABLE} --metrics all"),
        "--digits": (TABLE, f"{TABLE} --digits 2"),
        "--jobs": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --jobs 2"),
        "--redo": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --redo"),
        "--missing": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --missing leave_out"),
        "--list": (TABLE, f"{TABLE} --list"),
        "--suite": (f"{EVAL} {WITH}", f"eval runs/a --suite knn {WITH}"),
        "--with": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --with k=[3]"),
        "--set": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --set train.precision=bf16"),
        "--data": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --data ."),
        "--datasets": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --datasets x"),
        "--mode": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --mode x"),
        "--shots": ("eval runs/a --suite few_shot", "eval runs/a --suite few_shot --shots 3"),
        "--seeds": ("eval runs/a --suite few_shot", "eval runs/a --suite few_shot --seeds 3"),
        "--languages": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --languages all"),
        "--tasks": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --tasks x"),
        "--wise-ft": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --wise-ft 0,1"),
        "--wise-ft-tower": (
            f"{EVAL} {WITH} --wise-ft 0",
            f"{EVAL} {WITH} --wise-ft 0 --wise-ft-tower image",
        ),
        "--gpus": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --gpus 64"),
        "--cpu-workers": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --cpu-workers 3"),
        "--output": (f"{EVAL} {WITH}", f"{EVAL} {WITH} --output x.json"),
        "--trust": ("eval hostile --suite knn", "eval hostile --suite knn --trust"),
        "--runs": (f"eval --suite knn {WITH}", f"eval --suite knn {WITH} --runs here"),
    },
    "export": {
        "target": ("export out", "export runs/b out"),
        "output": ("export runs/a out", "export runs/a other"),
        "--tower": ("export runs/a out", "export runs/a out --tower text"),
        "--set": ("export runs/a out", "export runs/a out --set towers.text.model=x"),
        "--format": ("export runs/a out", "export runs/a out --format onnx"),
        "--normalize": ("export runs/a out --format onnx", "export runs/a out --normalize"),
        "--int8": ("export runs/a out --format onnx", "export runs/a out --int8"),
        "--wise-ft": ("export runs/a out", "export runs/a out --wise-ft 0.5"),
        "--card": (CARD, f"{CARD} --card"),
        "--license": (f"{CARD} --card", f"{CARD} --card --license bsd-3-clause"),
        "--language": (f"{CARD} --card", f"{CARD} --card --language en"),
        "--dataset": (f"{CARD} --card", f"{CARD} --card --dataset org/name"),
        "--push": (f"{CARD} --card", f"{CARD} --push name"),
        "--private": (f"{CARD} --card", f"{CARD} --card --private"),
        "--force": ("export runs/a full", "export runs/a full --force"),
        "--trust": ("export hostile out", "export hostile out --trust"),
        "--runs": ("export out", "export out --runs here"),
    },
    "encode": {
        "target": ("encode words.txt out.npy", "encode runs/b words.txt out.npy"),
        "input_": (ENCODE, "encode runs/a other.txt out.npy"),
        "output": (ENCODE, "encode runs/a words.txt other.npy"),
        "--tower": (ENCODE, f"{ENCODE} --tower image"),
        "--column": (ENCODE, f"{ENCODE} --column x"),
        "--reader": (ENCODE, f"{ENCODE} --reader x=1"),
        "--output": (ENCODE, f"{ENCODE} --output backbone"),
        "--pictures": (ENCODE, f"{ENCODE} --pictures x"),
        "--normalize": (ENCODE, f"{ENCODE} --raw"),
        "--dtype": (ENCODE, f"{ENCODE} --dtype float16"),
        "--precision": (ENCODE, f"{ENCODE} --precision bf16"),
        "--set": (ENCODE, f"{ENCODE} --set train.precision=bf16"),
        "--gpus": (ENCODE, f"{ENCODE} --gpus 64"),
        "--cpu-workers": (ENCODE, f"{ENCODE} --cpu-workers 3"),
        "--trust": ("encode hostile words.txt out.npy", "encode hostile words.txt out.npy --trust"),
        "--runs": ("encode words.txt out.npy", "encode words.txt out.npy --runs here"),
    },
    "mine": {
        "target": ("mine out.csv", "mine runs/b out.csv"),
        "output": (MINE, "mine runs/a other.tsv"),
        "--query": (MINE, f"{MINE} --query text"),
        "--num": (MINE, f"{MINE} --num 2"),
        "--range": (MINE, f"{MINE} --range 3:"),
        "--absolute-margin": (MINE, f"{MINE} --absolute-margin 0.5"),
        "--relative-margin": (MINE, f"{MINE} --relative-margin 0.9"),
        "--max-score": (MINE, f"{MINE} --max-score -0.2"),
        "--min-score": (MINE, f"{MINE} --min-score 0.99"),
        "--positives": (MINE, f"{MINE} --positives shape"),
        "--set": (MINE, f"{MINE} --set data.num_samples=3"),
        "--gpus": (MINE, f"{MINE} --gpus 64"),
        "--cpu-workers": (MINE, f"{MINE} --cpu-workers 3"),
        "--trust": ("mine hostile out.csv", "mine hostile out.csv --trust"),
        "--runs": ("mine out.csv", "mine out.csv --runs here"),
    },
    "search": {
        "words": (SEARCH, "search words.npy square"),
        "--k": (SEARCH, f"{SEARCH} -k 1"),
        "--tower": (SEARCH, f"{SEARCH} --tower image"),
        "--page": (SEARCH, f"{SEARCH} --page x.html"),
        "--json": (SEARCH, f"{SEARCH} --json"),
        "--trust": ("search hostile words.npy disc", "search hostile words.npy disc --trust"),
        "--runs": ("search a words.npy disc", "search a words.npy disc --runs here"),
    },
    "synthesize": {
        "target": ("synthesize pairs.yaml out", "synthesize tiny.yaml out"),
        "output": ("synthesize pairs.yaml out", "synthesize pairs.yaml other"),
        "--set": ("synthesize pairs.yaml out", "synthesize pairs.yaml out --set synthesis.depth=9"),
        "--gpus": ("synthesize pairs.yaml out", "synthesize pairs.yaml out --gpus 64"),
        "--cpu-workers": ("synthesize pairs.yaml out", "synthesize pairs.yaml out --cpu-workers 3"),
        "--trust": ("synthesize hostile_pairs out", "synthesize hostile_pairs out --trust"),
        "--runs": ("synthesize pairs out", "synthesize pairs out --runs others"),
    },
    "data check": {
        "recipe": ("data check tiny.yaml", "data check nothing.yaml"),
        "--set": ("data check tiny.yaml", "data check tiny.yaml --set data.num_samples=3"),
        "--output": ("data check tiny.yaml", "data check tiny.yaml --output x.csv"),
    },
    "runs": {
        "folder": ("runs", "runs here"),
        "--json": ("runs", "runs --json"),
    },
    "compare": {
        "targets": ("compare runs/a", "compare runs/b"),
        "--metric": ("compare runs/a runs/b", "compare runs/a runs/b --metric nothing"),
        "--baseline": ("compare runs/a runs/b", "compare runs/a runs/b --baseline nothing"),
        "--at": ("compare runs/a runs/b", "compare runs/a runs/b --at best"),
        "--table": ("compare runs/a runs/b", "compare runs/a runs/b --table x.csv"),
        "--runs": ("compare a b", "compare a b --runs here"),
    },
    "report": {
        "targets": ("report runs/a", "report runs/b"),
        "--output": ("report runs/a", "report runs/a --output x.html"),
        "--runs": ("report a", "report a --runs here"),
    },
    "recipes show": {"name": ("recipes show quickstart", "recipes show x")},
    "recipes copy": {
        "name": ("recipes copy quickstart x.yaml", "recipes copy nothing x.yaml"),
        "path": ("recipes copy quickstart", "recipes copy quickstart x.yaml"),
    },
    "recipes check": {
        "paths": ("recipes check tiny.yaml", "recipes check x.yaml"),
        "--set": ("recipes check tiny.yaml", "recipes check tiny.yaml --set train.epochs=x"),
    },
    "recipes smoke": {
        "paths": ("recipes smoke tiny.yaml", "recipes smoke x.yaml"),
        "--set": ("recipes smoke tiny.yaml", "recipes smoke tiny.yaml --set train.epochs=x"),
        "--no-weights": ("recipes smoke lit_mobilenet", "recipes smoke lit_mobilenet --no-weights"),
    },
    "cache list": {
        "--cache": ("cache list", "cache list --cache stored"),
        "--json": ("cache list --cache stored", "cache list --cache stored --json"),
    },
    "cache fill": {
        "recipe": ("cache fill teacher.yaml", "cache fill tiny.yaml"),
        "--set": ("cache fill teacher.yaml", "cache fill teacher.yaml --set data.num_samples=8"),
    },
    "cache export": {
        "file": ("cache export x.tar --cache stored", "cache export y.tar --cache stored"),
        "tables": ("cache export x.tar --cache stored", "cache export x.tar 00 --cache stored"),
        "--cache": ("cache export x.tar", "cache export x.tar --cache stored"),
    },
    "cache import": {
        "file": ("cache import t.tar", "cache import x.tar"),
        "--cache": ("cache import t.tar", "cache import t.tar --cache other"),
    },
    "cache prune": {
        "--unused-for": (
            "cache prune --cache stored --unused-for 0",
            "cache prune --cache stored --unused-for 9",
        ),
        "--cache": (
            "cache prune --unused-for 0",
            "cache prune --unused-for 0 --cache stored",
        ),
    },
    "recipes reference": {
        "--output": ("recipes reference", "recipes reference --output x.md"),
        "--folder": ("recipes reference", "recipes reference --folder pages"),
    },
    "show": {
        "kind": ("show", "show sink"),
        "name": ("show sink", "show sink csv"),
    },
    "list-models": {
        "--task": ("list-models -b timm", "list-models --task image-to-image"),
        "--all": ("list-models --task mesh-to-mesh", "list-models --task mesh-to-mesh --all"),
        "--builder": ("list-models", "list-models --builder torchvision"),
        "--modality": ("list-models -b openclip", "list-models -b openclip --modality text"),
        "--search": ("list-models -b timm", "list-models -b timm --search resnet10t*"),
        "--pretrained": ("list-models -b timm", "list-models -b timm --pretrained"),
        "--json": ("list-models -b torchvision", "list-models -b torchvision --json"),
    },
    "list-distillers": {"--json": ("list-distillers", "list-distillers --json")},
    "list-datasets": {
        "--data": ("list-datasets", "list-datasets --data ."),
        "--search": ("list-datasets", "list-datasets --search cifar"),
        "--here": ("list-datasets", "list-datasets --here"),
        "--json": ("list-datasets", "list-datasets --json"),
    },
    "list-adapters": {
        "--model": ("list-adapters", "list-adapters --model nothing/here"),
        "--json": ("list-adapters", "list-adapters --json"),
    },
    "submit-elevater": {
        "run": ("submit-elevater", "submit-elevater runs/b"),
        "--output": ("submit-elevater predictions", "submit-elevater predictions --output x.zip"),
        "--partial": ("submit-elevater predictions", "submit-elevater predictions --partial"),
        "--trust-order": (
            "submit-elevater predictions --partial",
            "submit-elevater predictions --partial --trust-order",
        ),
        "--registry": ("submit-elevater predictions", "submit-elevater predictions --registry x"),
        "--runs": ("submit-elevater", "submit-elevater --runs here"),
    },
}
"""For every option and argument: words without it, and words with it (or with another value)."""


def every_option() -> list[tuple[str, str]]:
    """(command, longest spelling) of each option and argument."""
    found = []
    commands = dict(typer.main.get_command(build_app()).commands)
    for name, command in list(commands.items()):
        # Not `isinstance(command, click.Group)`: typer has classes of its own.
        if grouped := getattr(command, "commands", None):
            del commands[name]
            commands |= {f"{name} {inner}": each for inner, each in grouped.items()}
    for name, command in commands.items():
        for parameter in command.params:
            if parameter.name != "help":
                found.append((name, max(parameter.opts, key=len)))
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder to call commands in: two runs, a hostile one, predictions, a recipe."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = tiny_recipe(data={"num_samples": 16}, train={"epochs": 1}, evals=EVALS)
    write_recipe(folder, recipe)
    (folder / "runs").mkdir()
    for seed, name in enumerate("ba"):
        train(folder, {**recipe, "train": {**recipe["train"], "seed": seed}}, f"runs/{name}")
    shutil.copytree(folder / "runs" / "a", folder / "hostile")
    text = (folder / "hostile" / "recipe.yaml").read_text()
    other = "suite: 'docs.snippets.my_suite:TwoCaptions'"
    (folder / "hostile" / "recipe.yaml").write_text(text.replace("suite: retrieval", other))
    (folder / "runs" / "b" / "x-zero_shot.json").touch()
    pairs = {"data": {"reader": "passages", "path": "here"}, "miners": ["bm25"]}
    synthesis = {"synthesis": {**pairs, "scorers": [{"name": "bm25"}], "depth": 10}}
    write_recipe(folder, {**recipe, **synthesis}, "pairs")
    for name, source in (("others/pairs", "runs/a"), ("hostile_pairs", "hostile")):
        shutil.copytree(folder / source, folder / name)
        with (folder / name / "recipe.yaml").open("a") as file:
            yaml.safe_dump(synthesis, file)
    (folder / "words.txt").write_text("a red disc\na blue square\n")
    (folder / "other.txt").write_text("a green square\n")
    shapes = "{reader: shapes, split: val, num_samples: 6, size_px: 32}"
    (folder / "lists.yaml").write_text(f"mine:\n- {shapes}\n")
    words = ["encode", *(str(folder / name) for name in ("runs/a", "words.txt", "words.npy"))]
    assert leaves(words) == 0
    make_tables(folder)
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    return folder


def make_tables(folder: Path) -> None:
    """A recipe with a stored teacher, a cache folder with a table, and an export of it."""
    teacher = {**IMAGE, "train": "none", "cache": {"draws": 1}}
    recipe = tiny_recipe(
        towers={"image": IMAGE, "text": TEXT, "teacher_image": teacher},
        distillers=[
            {"name": "infonce", "student": "image", "teacher": "text"},
            {"name": "simreg", "student": "image", "teacher": "teacher_image"},
        ],
        data={"num_samples": 16},
    )
    path = write_recipe(folder, recipe, "teacher")
    stored = {"train.cache_dir": folder / "stored", "train.batch_size": 4}
    words = [word for key, value in stored.items() for word in ("--set", f"{key}={value}")]
    assert leaves(["cache", "fill", path, *words]) == 0
    tables = ["--cache", str(folder / "stored")]
    assert leaves(["cache", "export", str(folder / "t.tar"), *tables]) == 0


def outcome(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> dict[str, str]:
    """All that a command leaves: exit code, output, files, and the workers it would have begun."""
    started: list[str] = []

    def run_workers(target: Any, job: Any, placement: Any, logs: Path) -> int:
        started.append(repr((target.__name__, job, placement)))
        return 0

    for module in ("launching.start", "launching.start_evaluation", "encode", "synthesize"):
        monkeypatch.setattr(f"vlkd_cli.engine.{module}.run_workers", run_workers)

    def submit(*words: Any, **keys: Any) -> Done:
        started.append(repr((words, keys)))
        return Done()

    def last_loss(recipe: Any) -> float:
        started.append(repr(recipe))
        return 0.0

    monkeypatch.setattr("vlkd_cli.engine.launching.smoke._last_loss", last_loss)
    monkeypatch.setattr("vlkd_cli.elevater.submission.submit", submit)
    monkeypatch.setattr("vlkd_cli.elevater.submission.prediction_folder", lambda run: run)
    for name in ("TRANSFORMERS_VERBOSITY", "PYTHONWARNINGS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    try:
        main(shlex.split(words))
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    quiet = os.environ.get("TRANSFORMERS_VERBOSITY")
    files = {
        path.relative_to(folder).as_posix(): "" if path.is_dir() else str(path.stat().st_size)
        for path in folder.rglob("*")
        if "state.json" not in path.name
    }
    stamp = r"\d{8}-\d{6}(-\d+)?"
    return {
        "code": str(code),
        "out": re.sub(stamp, "TIME", said.out),
        "err": re.sub(stamp, "TIME", said.err),
        "workers": re.sub(rf"{stamp}|dry-run-\w+", "TIME", repr(started)),
        "files": re.sub(stamp, "TIME", repr(sorted(files.items()))),
        "libraries": str(quiet),
    }


def test_the_options_tried_are_those_that_exist() -> None:
    tried = {(command, option) for command, options in OPTIONS.items() for option in options}
    assert tried == set(every_option())


@pytest.mark.parametrize(("command", "option"), every_option())
def test_every_option_changes_what_a_command_does(
    command: str,
    option: str,
    bench: Path,
    seen: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    if command == "list-adapters":
        pytest.importorskip("adapters", reason="needs the extra 'adapters'")
    outcomes = []
    for number, words in enumerate(OPTIONS[command][option]):
        if words not in seen:
            folder = tmp_path / str(number)
            shutil.copytree(bench, folder)
            monkeypatch.chdir(folder)
            monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
            seen[words] = outcome(words, folder, monkeypatch, capsys)
        outcomes.append(seen[words])
    assert outcomes[0] != outcomes[1]
    assert "0" in (outcomes[0]["code"], outcomes[1]["code"]), outcomes
