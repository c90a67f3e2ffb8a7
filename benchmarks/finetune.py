"""A fine-tuning recipe against plain fine-tuning: what is gained on the new data, and what is lost
on the old.

    python benchmarks/finetune.py [--recipe finetune/classes] [--seeds 0 1 2] [--folder FOLDER]
        [--ways plain recipe lora] [--alphas 0.5 0.75] [--set KEY=VALUE ...] [--lora-lr 4e-3]

Runs the commands that the recipe's header gives after `Before`, once, in the folder. Then each seed
fine-tunes the pair that they leave: plainly (the task's objective alone, one learning rate for all
layers), by the recipe, and by the recipe with LoRA. Prints, for each way and each WiSE-FT weight of
it, the primary metrics of the recipe's evaluations `new` and `old` with mean and standard error
over seeds, and the loss on the old as a fraction of plain fine-tuning's. What was run is not run
again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from forked import vlkd

from vlkd_cli.console import print_table
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.shipped import shipped_recipe

ROOT = Path(__file__).resolve().parent.parent
Scores = dict[str, float]
"""Value of the primary metric, by the name of the evaluation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="finetune/classes")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--ways", nargs="+", default=["plain", "recipe", "lora"])
    parser.add_argument("--alphas", nargs="*", default=[])
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE, of every way")
    parser.add_argument("--lora-lr", default=None, help="learning rate of the way lora")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for command in commands_before(shipped_recipe(options.recipe)):
        once(command, folder)
    rows, losses = [], dict[str, float]()
    for way in options.ways:
        settings = [*options.set, *settings_of(way, options.recipe, options.lora_lr)]
        runs = [train(folder, options.recipe, way, settings, seed) for seed in options.seeds]
        starts = [scores_at(run, first=True) for run in runs]
        ends = {way: [scores_at(run, first=False) for run in runs]}
        for alpha in options.alphas:
            ends[f"{way}, WiSE-FT {alpha}"] = [interpolated(run, alpha) for run in runs]
        for name, scores in ends.items():
            losses[name] = mean(starts, "old") - mean(scores, "old")
            plain = losses.get("plain")
            fraction = f"{losses[name] / plain:.2f}" if plain else ""
            shown = [cell for key in ("new", "old") for cell in cells(starts, scores, key)]
            rows.append([name, *shown, fraction])
    columns = [f"{key} {word}" for key in ("new", "old") for word in ("", "gain", "error")]
    print_table(options.recipe, ["way", *columns, "of plain's loss"], rows)


def commands_before(path: Path) -> list[str]:
    """The commands after `Before` in a recipe's header; a line that starts with no program goes
    with the one above."""
    found: list[str] = []
    word = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        word = line[2:].partition(" ")[0] or word
        text = line[2:].removeprefix(word).strip()
        if word == "Before" and text.startswith(("vlkd ", "python ")):
            found.append(text)
        elif word == "Before":
            found[-1] += f" {text}"
    return found


def settings_of(way: str, recipe: str, lora_lr: str | None) -> list[str]:
    """What a way changes of the recipe."""
    spec = load_recipe(recipe)
    if way == "recipe":
        return []
    if way == "lora":
        adapters = [f"towers.{tower}.adapter={{name: lora, rank: 16}}" for tower in PAIR]
        return [*adapters, *([f"optimizer.lr={lora_lr}"] if lora_lr else [])]
    # The copy is still encoded, and nothing is learned from it.
    copies = range(1, len(spec.distillers))
    return [
        *(f"towers.{tower}.layer_decay=null" for tower in PAIR),
        *(f"distillers[{number}].weight=0" for number in copies),
    ]


PAIR = ("image", "text")


def once(command: str, folder: Path) -> None:
    """Run a command of a recipe's header in the folder, unless that was done."""
    done = folder / f"before-{zlib.crc32(command.encode()):08x}.done"
    if done.exists():
        return
    program, *words = shlex.split(os.path.expandvars(command))
    if program == "vlkd":
        vlkd(*words, folder=folder)
    else:
        script = [sys.executable, str(ROOT / words[0]), *words[1:]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(script, check=True, cwd=folder, env=environment)
    done.touch()


def train(folder: Path, recipe: str, way: str, settings: Sequence[str], seed: str) -> Path:
    """Train once; the run folder."""
    text = shipped_recipe(recipe).read_text(encoding="utf-8").partition("towers:")[2]
    digest = zlib.crc32(repr((text, settings)).encode())
    run = folder / f"{recipe.replace('/', '_')}-{way}-{digest:08x}-{seed}"
    if not (run / "checkpoints" / "last.pt").exists():
        words = [f"train.seed={seed}", *settings]
        options = [word for setting in words for word in ("--set", setting)]
        vlkd("train", recipe, *options, "--run", str(run), "--quiet", folder=folder)
    return run


def interpolated(run: Path, alpha: str) -> Scores:
    """The evaluations of a run between its start and its end."""
    file = run / f"wise_ft_{alpha}.json"
    if not file.exists():
        vlkd("eval", str(run), "--wise-ft", alpha, "--output", str(file), folder=run.parent)
    return {result["name"]: primary(result) for result in json.loads(file.read_text())}


def scores_at(run: Path, *, first: bool) -> Scores:
    """The evaluations before or after a run."""
    steps = sorted((run / "results").glob("step_*"))
    files = (steps[0] if first else steps[-1]).glob("*.json")
    results = [json.loads(file.read_text()) for file in files]
    return {result["name"]: primary(result) for result in results}


def primary(result: dict[str, object]) -> float:
    metrics = result["metrics"]
    assert isinstance(metrics, dict)
    return float(metrics[result["primary_metric"]])


def mean(scores: Sequence[Scores], name: str) -> float:
    return statistics.mean(each[name] for each in scores)


def cells(starts: Sequence[Scores], ends: Sequence[Scores], name: str) -> list[str]:
    """Values, mean gain over the start, and its standard error."""
    gains = [end[name] - start[name] for start, end in zip(starts, ends, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    values = " ".join(f"{end[name]:.3f}" for end in ends)
    return [f"{starts[0][name]:.3f} -> {values}", f"{statistics.mean(gains):+.3f}", f"{error:.3f}"]


if __name__ == "__main__":
    main()
