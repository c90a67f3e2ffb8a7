"""Vectors of texts and images from a run, and the image that is nearest to a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import vlkd_cli


def nearest_image(run: str, text: str, folder: Path) -> Path:
    encoder = vlkd_cli.load(run)
    files = sorted(folder.glob("*.png"))
    images = encoder.encode(files)  # [N, width] float32, of unit length
    words = encoder.encode(text)  # [1, width]
    return files[int(np.argmax(images @ words[0]))]
