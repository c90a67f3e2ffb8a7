"""Run folders as training leaves them, written in milliseconds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

RECIPE: dict[str, Any] = {
    "towers": {
        "image": {"builder": "timm", "model": "resnet10t", "train": "all"},
        "text": {"builder": "huggingface", "train": "none"},
    },
    "distillers": [{"name": "infonce", "weight": 1.0}],
    "data": {"reader": "csv", "path": "/data/train.csv", "workers": 2},
    "train": {"seed": 0, "epochs": 1, "best": None},
    "optimizer": {"name": "adamw", "lr": 0.001},
}


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    values: Sequence[float] = (0.1, 0.3, 0.25),
    chance: float | None = 0.05,
    best: str | None = None,
    rows: str = "aa11",
    right: Sequence[bool] | None = None,
    state: str = "finished",
    error: str | None = None,
    keys: Mapping[str, Any] | None = None,
    metric: str = "top1",
) -> Path:
    """A run with a zero-shot evaluation every ten steps; `keys` are dotted keys of the recipe."""
    folder.mkdir(parents=True)
    recipe = json.loads(json.dumps(RECIPE))
    recipe["train"].update(seed=seed, best=best)
    for key, value in (keys or {}).items():
        *outer, last = key.split(".")
        section = recipe
        for name in outer:
            section = section.setdefault(name, {})
        section[last] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    command = ["/usr/bin/vlkd", "train", "recipes/mine.yaml", "--set", f"train.seed={seed}"]
    versions = {"vlkd": "0.1.0", "python": "3.11", "packages": {"torch": "2"}, "command": command}
    (folder / "versions.json").write_text(json.dumps(versions))
    steps = [10 * (n + 1) for n in range(len(values))]
    lines = ["step,name,value"]
    for step in range(2, (steps or [20])[-1] + 1, 2):
        lines += [f"{step},train/loss,{5 / step}", f"{step},train/learning_rate,{step / 1e4}"]
        lines += [f"{step},train/samples_per_second,17.5", f"{step},train/epoch,{step / 10}"]
    for step, value in zip(steps, values, strict=True):
        lines.append(f"{step},eval/zero_shot.pets.{metric},{value}")
        write_result(folder, step, value, chance=chance, rows=rows, right=right, metric=metric)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    last = steps[-1] if steps else 0
    plain = {"state": state, "step": last, "total_steps": 30, "error": error}
    plain |= {"host": os.uname().nodename, "pid": os.getpid()}
    plain |= {"started": "2026-01-01T00:00:00+00:00", "updated": "2026-01-01T00:01:00+00:00"}
    (folder / "state.json").write_text(json.dumps(plain))
    return folder


def write_result(
    folder: Path,
    step: int | None,
    value: float,
    *,
    chance: float | None = 0.05,
    rows: str = "aa11",
    right: Sequence[bool] | None = None,
    suite: str = "zero_shot",
    dataset: str = "pets",
    metric: str = "top1",
) -> Path:
    """A result file, with the answers to its items where they are given."""
    place = folder / "results" / (f"step_{step:08d}" if step is not None else "")
    place.mkdir(parents=True, exist_ok=True)
    result = {
        "suite": suite,
        "dataset": dataset,
        "split": "test",
        "protocol": "prompts",
        "metrics": {metric: value},
        "primary_metric": metric,
        "chance": {} if chance is None else {metric: chance},
        "num_items": 200,
        "hashes": {"rows": rows},
        "settings": {},
    }
    path = place / f"{suite}-{dataset}-test-prompts.json"
    path.write_text(json.dumps(result))
    if right is not None:
        np.savez(
            place / f"{suite}-{dataset}-test-prompts.items.npz",
            predicted=np.zeros(len(right), dtype=np.uint16),
            right=np.packbits(np.asarray(right)),
        )
    return path


def write_shown(result: Path, pictures: Path, *, captions: Sequence[str] = ("a dog",)) -> None:
    """The lists of the page next to a result: a miss, a hit, a confusion, a map; six picture files,
    of which the last is missing, and one stored thumbnail."""
    pictures.mkdir(parents=True, exist_ok=True)
    places: dict[str, Any] = {}
    for n in range(7):
        file = pictures / f"{n}.jpg"
        if n < 6:
            Image.new("RGB", (200, 150), (30 * n, 90, 200 - 20 * n)).save(file)
        places[str(n)] = str(file)
    found = [[n, round(0.5 - n / 20, 2)] for n in range(5)]
    lists = {
        "misses": [
            {"caption": c, "image": 5, "rank": 9, "cosine": 0.1, "found": found} for c in captions
        ],
        "hits": [{"caption": "a cat", "image": 0, "rank": 1, "cosine": 0.5, "found": found}],
        "confusions": [
            {
                "class": "cat",
                "taken_for": "dog",
                "images": 3,
                "of": 9,
                "found": [[n, 0.4, 0.1] for n in (2, 3, 6)],
            }
        ],
        "map_captions": ["one", "two", "three"],
        "pictures": places,
    }
    rng = np.random.default_rng(0)
    np.savez(
        result.with_name(result.name.removesuffix(".json") + ".map.npz"),
        lists=np.array(json.dumps(lists)),
        thumbnails=np.zeros(0, dtype=np.uint8),
        map=rng.normal(size=(2, 3, 2)).astype(np.float32),
        map_variance=0.4,
    )
