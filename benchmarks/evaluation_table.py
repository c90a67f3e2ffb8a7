"""A table of three models, four data sets and three suites against a loop that only encodes the
pictures.

    python benchmarks/evaluation_table.py [--train 160] [--test 80] [--model resnet18] [--threads 1]

Exits with 1 where the table takes more than 1.05 times the loop, which is measured before and after
it, from recipes to the end: planning, digests, probes, result files and the table itself are in
it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlkd_cli.app import main as vlkd
from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.readers.classification import Classification
from vlkd_cli.data.views import ImageView
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.recipe.load import parse_recipe

CLASSES, SETS, LIMIT = 8, 4, 1.05
RECIPE = """\
towers:
  image: {{builder: torchvision, model: {model}, head: {{name: linear, width: 64}}}}
  text: {{builder: openclip, config: {{layers: 1, width: 64, heads: 2}}}}
train: {{seed: {seed}}}
"""


def write_data(root: Path, train: int, test: int) -> None:
    for number in range(SETS):
        for split, count in (("train", train), ("test", test)):
            for row in range(count):
                label = row % CLASSES
                random = np.random.RandomState(100_000 * number + 10_000 * (split == "test") + row)
                pixels = random.randint(0, 128, (224, 224, 3))
                pixels[:, :, label % 3] += 15 * label
                folder = root / f"set{number}" / split / f"class {label}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.jpg")


def encode_only(recipes: list[Path], root: Path) -> None:
    """The bare forward passes over all pictures, as anyone would write them."""
    for path in recipes:
        recipe = parse_recipe(path.read_text(), str(path))
        tower = load_towers(recipe, path.parent, None)["image"].eval()
        for number in range(SETS):
            for split in ("train", "test"):
                reader = Classification(path=str(root / f"set{number}"), split=split)
                batches = in_order(
                    reader,
                    {"image": ImageView(tower.input, None)},
                    list(range(len(reader))),
                    batch_size=64,
                    workers=0,
                )
                with torch.no_grad():
                    for batch in batches:
                        tower.features(batch.inputs["image"])


def encoding_alone(recipes: list[Path], root: Path) -> float:
    """Seconds of CPU of the loop."""
    begin = time.process_time()
    encode_only(recipes, root)
    return time.process_time() - begin


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--train", type=int, default=160)
    options.add_argument("--test", type=int, default=80)
    options.add_argument("--model", default="resnet18")
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.chdir(place)
        os.environ["VLKD_CACHE"] = str(place / "cache")
        write_data(place / "data", given.train, given.test)
        recipes = []
        for seed in range(3):
            recipes.append(place / f"model{seed}.yaml")
            recipes[-1].write_text(RECIPE.format(model=given.model, seed=seed))
        before = encoding_alone(recipes, place / "data")
        words = [path.name for path in recipes]
        sets = ",".join(f"set{number}" for number in range(SETS))
        command = f"--data data --datasets {sets} --suite zero_shot,knn,linear_probe"
        begin = time.process_time()
        try:
            vlkd(["eval", *words, *command.split(), "--table", "out.csv"])
        except SystemExit as left:
            assert not left.code, left.code
        table = time.process_time() - begin
        after = encoding_alone(recipes, place / "data")
    bare = (before + after) / 2
    print(
        f"encoding alone {before:.1f} s before and {after:.1f} s after, table {table:.1f} s of CPU:"
        f" {table / bare:.3f} times"
    )
    return int(table > LIMIT * bare)


if __name__ == "__main__":
    sys.exit(main())
