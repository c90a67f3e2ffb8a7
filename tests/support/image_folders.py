"""Data roots of small image folders, and runs that measure them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("red", "green", "blue")


def make_image_root(root: Path, names: Sequence[str], train: int = 4, test: int = 3) -> Path:
    """Data sets of three classes with noisy pictures of their color, other ones in each set."""
    for number, name in enumerate(names):
        for split, count in (("train", train), ("test", test)):
            for label, title in enumerate(CLASSES):
                folder = root / name / split / title
                folder.mkdir(parents=True)
                for row in range(count):
                    seed = 1000 * number + 100 * label + row + 50 * (split == "test")
                    pixels = np.random.RandomState(seed).randint(0, 120, (32, 32, 3))
                    pixels[:, :, label] += 100
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.png")
    return root
