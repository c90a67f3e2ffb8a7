"""Recipes of the golden traces: one small run of 20 steps per family, on rendered shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

STEPS = 20

_VIT = {"layers": 1, "width": 16, "heads": 2}
_IMAGE = {"builder": "openclip", "config": {**_VIT, "image_size": 32, "patch_size": 8}}
_TEXT = {"builder": "openclip", "config": {**_VIT, "vocab_size": 1024, "context_length": 32}}
_DATA = {"reader": "shapes", "num_samples": 80, "size_px": 32, "workers": 0}
_NOT_AUGMENTED = {**_DATA, "augment": {"name": "none"}}
_TRAIN = {"epochs": 10, "steps": STEPS, "batch_size": 8, "log_every_steps": 1}
# A large eps: Adam turns the rounding noise of gradients that are 0 in theory into full steps, and
# so would make numbers that depend on the processor.
_ADAMW = {"name": "adamw", "lr": 2e-3, "eps": 1e-3}
_SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9}


def _infonce(folder: Path) -> dict[str, Any]:
    """Two towers from scratch: clipping, warm-up, dropout, two rates, augmentation."""
    head = {"name": "linear", "width": 16, "dropout": 0.1}
    return {
        "towers": {"image": _IMAGE, "text": {**_TEXT, "head": head, "lr": 1e-3}},
        "distillers": [{"name": "infonce"}],
        "data": _DATA,
        "train": {**_TRAIN, "clip_grad_norm": 20.0},
        "optimizer": _ADAMW,
        "schedule": {"name": "cosine", "warmup_steps": 4},
    }


def _lit(folder: Path) -> dict[str, Any]:
    """A frozen image tower whose features come from the cache; the text tower learns."""
    return {
        "towers": {"image": {**_IMAGE, "train": "none", "cache": True}, "text": _TEXT},
        "distillers": [{"name": "siglip"}],
        "data": _NOT_AUGMENTED,
        "train": _TRAIN,
        "optimizer": _SGD,
        "schedule": {"name": "linear", "warmup_epochs": 1, "end_factor": 0.1},
    }


def _pair(folder: Path) -> dict[str, Any]:
    """A pair of towers learns from a frozen pair; two views; weights on schedules."""
    return {
        "towers": {
            "image": _IMAGE,
            "text": _TEXT,
            "teacher_image": {
                **_IMAGE,
                "config": {**_IMAGE["config"], "width": 32},
                "train": "none",
            },
            "teacher_text": {**_TEXT, "config": {**_TEXT["config"], "width": 32}, "train": "none"},
        },
        "distillers": [
            {"name": "infonce"},
            {"name": "affinity", "weight": {"linear": [0.2, 1.0]}},
            {"name": "relational_kl", "weight": {"cosine": [1.0, 0.1], "steps": 10}},
            {"name": "feature_distance", "weight": 2.0},
            {
                "name": "dino",
                "num_prototypes": 16,
                "teacher_temperature": {"linear": [0.1, 0.2], "epochs": 2},
            },
            {"name": "ntxent", "student": "image", "teacher": "image@strong", "weight": 0.5},
        ],
        "data": {**_DATA, "views": {"strong": {"name": "simclr"}}},
        "train": {**_TRAIN, "clip_grad_norm": 40.0},
        "optimizer": _ADAMW,
        "schedule": {"name": "cosine"},
    }


def _queue(folder: Path) -> dict[str, Any]:
    """Queues, a tower that follows another, an average of the weights, two batches per step."""
    return {
        "towers": {
            "image": _IMAGE,
            "text": _TEXT,
            "image_momentum": {"follows": "image", "momentum": {"cosine": [0.5, 0.95]}},
        },
        "distillers": [
            {"name": "infonce", "weight": 0.5},
            {
                "name": "seed",
                "student": "image",
                "teacher": "image_momentum",
                "queue_size": 40,
                "teacher_temperature": 0.05,
            },
            {"name": "compress", "student": "image", "teacher": "text", "queue_size": 40},
        ],
        "data": _DATA,
        "train": {**_TRAIN, "accumulate": 2, "batch_size": 4, "ema": 0.8, "clip_grad_norm": 15.0},
        "optimizer": _SGD,
        "schedule": {"name": "cosine", "warmup_steps": 3},
    }


def _protoclip(folder: Path) -> dict[str, Any]:
    """Clusters found again at the start of each episode, which is shorter than the data."""
    head = {"name": "mlp", "layers": 2, "hidden": 16, "width": 8}
    return {
        "towers": {"image": {**_IMAGE, "head": head}, "text": {**_TEXT, "head": head}},
        "distillers": [
            {
                "name": "protoclip",
                "student": ["image.backbone", "image"],
                "teacher": ["text.backbone", "text"],
                "num_prototypes": 4,
            }
        ],
        "data": {**_DATA, "episode_samples": 48},
        "train": _TRAIN,
        "optimizer": _ADAMW,
        "schedule": {"name": "constant", "warmup_steps": 2},
    }


def _adapter(folder: Path) -> dict[str, Any]:
    """A tiny BERT that learns by LoRA, its own dropout included."""
    from tests.support.encoders import write_encoder

    model = folder / "bert"
    if not model.exists():
        torch.manual_seed(0)
        write_encoder(model)
    adapter = {"name": "lora", "dropout": 0.1}
    head = {"name": "linear", "width": 16}
    text = {"builder": "adapters", "model": str(model), "adapter": adapter, "head": head}
    return {
        "towers": {"image": _IMAGE, "text": text},
        "distillers": [{"name": "infonce"}],
        "data": _NOT_AUGMENTED,
        "train": {**_TRAIN, "ema": 0.8},
        "optimizer": _ADAMW,
        "schedule": {"name": "linear", "warmup_steps": 2},
    }


def _labels(folder: Path) -> dict[str, Any]:
    """Objectives on labels; layers with rates of their own; part of a tower frozen."""
    deep = {**_IMAGE["config"], "layers": 2}
    return {
        "towers": {
            "image": {**_IMAGE, "config": deep, "layer_decay": 0.5},
            "text": {**_TEXT, "train": {"last": 1}},
        },
        "distillers": [
            {"name": "unicl"},
            {"name": "cross_entropy", "num_classes": 48, "label_smoothing": 0.1, "weight": 0.2},
        ],
        "data": _DATA,
        "train": {**_TRAIN, "accumulate": 2, "batch_size": 4},
        "optimizer": {**_ADAMW, "decay_all": True},
    }


FAMILIES = {
    "infonce": _infonce,
    "lit": _lit,
    "pair": _pair,
    "queue": _queue,
    "protoclip": _protoclip,
    "adapter": _adapter,
    "labels": _labels,
}


def trace_recipe(family: str, folder: Path) -> dict[str, Any]:
    """The recipe of a family; the files that it reads, and its cache, are in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = FAMILIES[family](folder)
    return {**recipe, "train": {**recipe["train"], "cache_dir": str(folder / "cache")}}
