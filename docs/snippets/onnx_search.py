"""Vectors from an ONNX export, without vlkd and torch: see docs/export.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoTokenizer


def encode_texts(folder: Path, texts: list[str]) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokenize = AutoTokenizer.from_pretrained(folder)
    ids = tokenize(texts, padding=True, truncation=True, return_tensors="np")
    return session.run(None, {each.name: ids[each.name] for each in session.get_inputs()})[0]


def encode_images(folder: Path, images: list[Image.Image]) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    _, _, height, width = session.get_inputs()[0].shape
    # Squashed; `images:` in vlkd_tower.yaml describes how the model's own preprocessing resizes.
    pixels = [np.asarray(image.convert("RGB").resize((width, height))) for image in images]
    return session.run(None, {"images": np.stack(pixels).transpose(0, 3, 1, 2)})[0]
