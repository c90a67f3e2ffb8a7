"""Tiny recipes on rendered shapes, for the engine's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from vlkd_cli.engine.launching.start import TrainRequest, start_training

IMAGE = {
    "builder": "openclip",
    "config": {"layers": 1, "width": 16, "heads": 2, "image_size": 32, "patch_size": 8},
}
TEXT = {"builder": "openclip", "config": {"layers": 1, "width": 16, "heads": 2}}


def tiny_recipe(**sections: Any) -> dict[str, Any]:
    """A recipe of a few fast steps; sections replace or extend the defaults, key by key."""
    recipe: dict[str, Any] = {
        "towers": {
            "image": IMAGE,
            "text": {**TEXT, "head": {"name": "linear", "width": 16, "dropout": 0.1}},
        },
        "distillers": [{"name": "infonce"}],
        "data": {"reader": "shapes", "num_samples": 48, "size_px": 32, "workers": 0},
        "train": {"epochs": 2, "batch_size": 8, "log_every_steps": 1},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }
    for name, section in sections.items():
        recipe[name] = (
            {**recipe[name], **section} if isinstance(section, dict) and name in recipe else section
        )
    return recipe


def write_recipe(folder: Path, recipe: dict[str, Any], name: str = "tiny") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def train(
    folder: Path, recipe: dict[str, Any], run: str = "run", *, expected: int = 0, **options: Any
) -> Path:
    """Train in this process, quietly, to the expected exit status; the run folder."""
    if "resume" not in options and not options.get("dry_run"):
        options["run"] = folder / run
    request = TrainRequest(recipe=write_recipe(folder, recipe), quiet=True, **options)
    status = start_training(request)
    assert status == expected
    return folder / run


def final_state(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def differences(first: Any, second: Any, key: str = "") -> list[str]:
    """Where two trees of tensors and plain values are not equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return [] if isinstance(second, torch.Tensor) and first.equal(second) else [key]
    if isinstance(first, dict):
        if set(first) != set(second):
            return [f"{key}: keys"]
        return [
            found
            for name in first
            for found in differences(first[name], second[name], f"{key}.{name}")
        ]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{key}: length"]
        return [
            found
            for n, (a, b) in enumerate(zip(first, second, strict=True))
            for found in differences(a, b, f"{key}[{n}]")
        ]
    return [] if first == second else [key]
