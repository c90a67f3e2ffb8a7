"""Hard negatives on the relations of the rendered shapes: do they help to tell what is where?

    python benchmarks/negatives.py [--seeds 0,1,2] [--folder runs/negatives] [--images 4000]
        [--epochs 10] [--batch-size 128] [--lr 4e-3] [--of batch] [--each]

Writes pictures of two shapes with a caption each, and three captions that are almost right: the
colors exchanged, the shapes exchanged, the relation reversed. Trains each seed in three ways, with
as many steps: by InfoNCE alone; with the almost right captions as `negatives`; and with the hardest
captions of other pictures that `vlkd mine` finds by the first run. A step reads one of a picture's
wrong captions, with `--each` all of them. Prints the accuracy of suite
caption_choice (the right caption above all three wrong ones; chance 0.25) and R@1 among held-out
pictures, the means over seeds, and what a way gains over plain training with the same seeds, with
the 95 % interval of Student's t.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from forked import vlkd

from vlkd_cli.console import print_table
from vlkd_cli.data.readers.shapes import Scene, Shapes
from vlkd_cli.numerics.statistics import paired_difference

REVERSED = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
WRONG = ("colors", "shapes", "relation")
RECIPE = """
towers:
  image:
    builder: timm
    model: resnet10t
    image_size: 48
    config: {channels: [32, 64, 128, 256], stem_width: 16}
    head: {name: linear, width: 128}
  text: {builder: huggingface, config: {layers: 2, width: 128, heads: 4}, tokenizer: trained}
distillers: [{name: infonce}]
"""
REST = """
train: {clip_grad_norm: 1, KEYS}
optimizer: {name: adamw, weight_decay: 0.05, lr: RATE}
schedule: {warmup_steps: 20}
"""


def captions(scene: Scene) -> list[str]:
    """The right caption, and the three that are almost right."""
    assert scene.other is not None
    one, two, relation = scene.thing, scene.other, scene.relation
    return [
        f"a {one.color} {one.shape} {relation} a {two.color} {two.shape}",
        f"a {two.color} {one.shape} {relation} a {one.color} {two.shape}",
        f"a {one.color} {two.shape} {relation} a {two.color} {one.shape}",
        f"a {one.color} {one.shape} {REVERSED[relation]} a {two.color} {two.shape}",
    ]


def pictures(folder: Path, split: str, count: int) -> Iterator[tuple[str, list[str]]]:
    """Pictures of two different shapes in different colors, written to the folder."""
    reader = Shapes(num_samples=2 * count, size_px=48, split=split, relations=True)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    found = 0
    for index in range(len(reader)):
        scene = reader.scene(index)
        if scene.other is None or scene.other.shape == scene.thing.shape or found == count:
            continue
        path = folder / f"{index:06d}.png"
        if not path.exists():
            reader.image(index).save(path)
        found += 1
        yield str(path.absolute()), captions(scene)


def write_data(folder: Path, count: int) -> None:
    """`train.csv`, and `val.json` for suite caption_choice and `val.csv` for retrieval."""
    if (folder / "val.json").exists():
        return
    for split, size in (("train", count), ("val", 500)):
        rows = list(pictures(folder / split, split, size))
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filepath", "title", *WRONG])
            table.writerows([place, *texts] for place, texts in rows)
    items = [{"image": place, "right": texts[0], "wrong": texts[1:]} for place, texts in rows]
    (folder / "val.json").write_text(json.dumps(items))


class Length(NamedTuple):
    """How long and at which rate each run is trained."""

    epochs: int
    batch_size: int
    lr: float


def train(folder: Path, name: str, seed: str, data: str, negatives: str, length: Length) -> Path:
    """Train once; the run folder."""
    run = folder / f"{name}-{seed}"
    if (run / "checkpoints" / "last.pt").exists():
        return run
    recipe = folder / f"{name}-{seed}.yaml"
    evals = (
        f"evals:\n  - {{suite: caption_choice, data: '{folder}/val.json'}}\n"
        f"  - {{suite: retrieval, data: {{reader: csv, path: '{folder}/val.csv'}}}}\n"
    )
    objective = f"{{name: infonce{', negatives: ' + negatives if negatives else ''}}}"
    keys = f"epochs: {length.epochs}, batch_size: {length.batch_size}, seed: {seed}"
    rest = REST.replace("KEYS", keys).replace("RATE", str(length.lr))
    text = RECIPE.replace("{name: infonce}", objective) + f"data: {data}\n" + rest + evals
    recipe.write_text(text)
    vlkd("train", str(recipe), "--run", str(run), "--quiet", folder=folder)
    return run


def metric(run: Path, suite: str, name: str) -> float:
    (file,) = sorted((run / "results").glob("step_*"))[-1].glob(f"{suite}-*.json")
    value: float = json.loads(file.read_text())["metrics"][name]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folder", type=Path, default=Path("runs/negatives"))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--of", choices=["batch", "own"], default="batch")
    parser.add_argument("--each", action="store_true", help="all wrong captions in every step")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, options.images)
    keys = "reader: csv, image_root: /, augment: {name: none}, workers: 0"
    runs: dict[str, list[Path]] = {"plain": [], "swapped": [], "mined": []}
    kind = f"{options.of}{'_each' if options.each else ''}"
    length = Length(options.epochs, options.batch_size, options.lr)
    for seed in options.seeds.split(","):
        data = f"{{{keys}, path: '{folder}/train.csv'}}"
        plain = train(folder, "plain", seed, data, "", length)
        runs["plain"].append(plain)
        table = folder / f"mined-{seed}.csv"
        if not table.exists():
            vlkd("mine", str(plain), str(table), folder=folder)
        mined = [f"negative_{number}" for number in range(1, 5)]
        for way, path, names in (
            ("swapped", folder / "train.csv", list(WRONG)),
            ("mined", table, mined),
        ):
            texts, negatives = hard(names, each=options.each)
            data = f"{{{keys}, path: '{path}', texts: {texts}}}"
            negatives += f", negatives_of: {options.of}"
            run = train(folder, f"{way}_{kind}", seed, data, negatives, length)
            runs[way].append(run)
    rows = []
    for way, found in runs.items():
        row = [way]
        for suite, name in (("caption_choice", "accuracy"), ("retrieval", "image_to_text_R@1")):
            values, plain_values = (
                [metric(run, suite, name) for run in each] for each in (found, runs["plain"])
            )
            row += [" ".join(f"{value:.3f}" for value in values), f"{statistics.mean(values):.3f}"]
            row.append("" if way == "plain" else gain(values, plain_values))
        rows.append(row)
    columns = ["negatives", "caption_choice", "mean", "gain", "R@1", "mean", "gain"]
    print_table("Relations of the rendered shapes", columns, rows)


def hard(columns: Sequence[str], *, each: bool) -> tuple[str, str]:
    """`texts` of the data and `negatives` of the objective for columns of wrong captions."""
    if not each:
        return f"{{hard: [{', '.join(columns)}]}}", "text@hard"
    texts = ", ".join(f"wrong_{number}: {name}" for number, name in enumerate(columns))
    addresses = ", ".join(f"text@wrong_{number}" for number in range(len(columns)))
    return f"{{{texts}}}", f"[{addresses}]"


def gain(values: Sequence[float], plain: Sequence[float]) -> str:
    """Mean difference over seeds and half the width of its interval."""
    difference = paired_difference(values, plain)
    if difference is None:
        return ""
    half = (difference.high - difference.low) / 2
    return f"{difference.mean:+.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
