"""Fine-tuning on six colors of the rendered shapes: what is gained on them, and what the classes of
the two other colors lose.

    python benchmarks/finetune.py [--recipe finetune/classes] [--seeds 0,1,2] [--folder FOLDER]

First a base is trained on all colors (`runs/base` in the folder, once). Then each seed fine-tunes
it in three ways: plainly (the task's objective alone, one learning rate for all layers), by the
recipe, and by the recipe with LoRA. Prints, for each way, the zero-shot accuracy on the new and the
old classes before and after with the mean over seeds and its standard error, and the loss on the
old classes as a fraction of plain fine-tuning's. What was run is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from vlkd_cli.console import print_table

BASE = [
    "quickstart",
    *("--set", "data.combinations=all"),
    *("--set", "data.workers=0"),
    *("--set", "train.epochs=3"),
    *("--set", "reports=[csv]"),
    *("--set", "evals=[{suite: zero_shot, data: {reader: shapes, split: val, size_px: 48}}]"),
]
WITHOUT_COPY = {"towers.image.layer_decay": "null", "towers.text.layer_decay": "null"}
ONE_RATE = [word for key, value in WITHOUT_COPY.items() for word in ("--set", f"{key}={value}")]
LORA = "{name: lora, rank: 16}"


def train(folder: Path, name: str, words: list[str]) -> Path:
    """Train once; the run folder."""
    run = folder / name
    if not (run / "checkpoints" / "last.pt").exists():
        command = [sys.executable, "-m", "vlkd_cli", "train", *words, "--run", str(run)]
        environment = {**os.environ, "VLKD_BASE": str(folder / "base")}
        subprocess.run([*command, "--cpu-workers", "1", "--quiet"], check=True, env=environment)
    return run


def accuracy(run: Path, name: str, first: bool) -> float:
    """Zero-shot accuracy of an entry of `evals:`, before or after the run."""
    steps = sorted((run / "results").glob("step_*"))
    folder = steps[0] if first else steps[-1]
    (file,) = folder.glob(f"{name}-*.json")
    value: float = json.loads(file.read_text())["metrics"]["top1"]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="finetune/classes")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--ways", default="plain,recipe")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, of every way")
    options = parser.parse_args()
    train(options.folder, "base", BASE)
    os.environ.setdefault("VLKD_BASE", str(options.folder / "base"))
    towers = ["image", "text"]
    # The copy is still encoded, and nothing is learned from it.
    only = [*ONE_RATE, *("--set", "distillers[1].weight=0"), *("--set", "distillers[2].weight=0")]
    ways = {
        "plain": only,
        "recipe": [],
        "lora": [word for tower in towers for word in ("--set", f"towers.{tower}.adapter={LORA}")],
    }
    shared = [word for setting in options.set for word in ("--set", setting)]
    seeds = options.seeds.split(",")
    losses: dict[str, float] = {}
    rows = []
    for way in options.ways.split(","):
        runs = [
            train(
                options.folder,
                f"{way}-{seed}",
                [options.recipe, *shared, "--set", f"train.seed={seed}", *ways[way]],
            )
            for seed in seeds
        ]
        row = [way]
        for name in ("new", "old"):
            before = accuracy(runs[0], name, True)
            after = [accuracy(run, name, False) for run in runs]
            row += [f"{before:.3f}", f"{statistics.mean(after):.3f}", f"{error(after):.3f}"]
            if name == "old":
                losses[way] = before - statistics.mean(after)
        rows.append([*row, f"{losses[way] / losses['plain']:.2f}"])
    columns = ["way", "new before", "after", "error", "old before", "after", "error"]
    print_table("Fine-tuning on six colors", [*columns, "of plain's loss"], rows)


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
