"""Render a small shop: photos of products with titles, as recipe `finetune/products` reads them.

    python docs/prepare_products.py products [--photos 2000]

A product is a shape of one color and size, 144 in all; its photos differ in place and background,
which its title does not mention. Writes `train.csv` and `val.csv` with the columns `filepath`,
`title` and `product`; no photo is in both.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from vlkd_cli.data.readers.shapes import Shapes

WORDINGS = ("{size} {color} {shape}", "{color} {shape}, {size}", "{shape} in {color}, {size}")


def write_products(folder: Path, photos: int) -> None:
    """Both tables, with a quarter as many photos to measure on."""
    for split, count in (("train", photos), ("val", photos // 4)):
        reader = Shapes(num_samples=count, size_px=48, split=split)  # type: ignore[arg-type]
        (folder / split).mkdir(parents=True, exist_ok=True)
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["filepath", "title", "product"])
            for index in range(count):
                thing = reader.scene(index).thing
                words = {"size": thing.size, "color": thing.color, "shape": thing.shape}
                title = WORDINGS[index % len(WORDINGS)].format(**words)
                place = f"{split}/{index:05}.png"
                reader.image(index).save(folder / place)
                table.writerow([place, title, "-".join(words.values())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=2000, help="to train on")
    options = parser.parse_args()
    write_products(options.folder, options.photos)


if __name__ == "__main__":
    main()
