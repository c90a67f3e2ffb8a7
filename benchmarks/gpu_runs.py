"""Whole runs on a GPU: frozen towers out of the cache, and JPEG files decoded by loader workers."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from gpu_steps import TINY, tower
from gpu_table import Table, measure
from torch import Tensor, nn
from training_sides import draw_data

from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.reports.csv import read_metrics

WIDTH = 512


def frozen(table: Table, tiny: bool) -> None:
    """Pairs a second with both towers frozen and cached and a linear head on each, compared with
    the same heads and a dense loss in plain torch on a table in the device's memory."""
    pairs, steps = (128, 4) if tiny else (8_192, 200)
    cached = {
        "builder": "openclip",
        "train": "head",
        "cache": True,
        "head": {"name": "linear", "width": WIDTH},
    }
    sizes = {"layers": 1, "width": 64, "heads": 1, "embed_dim": WIDTH}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for batch in (64, 256) if tiny else (4_096, 16_384):
            what = f"both towers frozen and cached, batch {batch:,}"
            with table.case(what, "vlkd"):
                recipe = {
                    "towers": {
                        "image": {
                            **cached,
                            "config": {**sizes, "image_size": 32, "patch_size": 16},
                        },
                        "text": {**cached, "config": sizes},
                    },
                    "distillers": [{"name": "infonce"}],
                    "data": {
                        "reader": "shapes",
                        "num_samples": pairs,
                        "size_px": 32,
                        "augment": {"name": "none"},
                        "workers": 0,
                        "episode_samples": batch * steps,
                    },
                    "train": _settings(folder, batch, steps, steps // 4),
                    "optimizer": {"name": "adamw", "lr": 1e-4},
                }
                values = _train(recipe, folder, table.device, f"frozen_{batch}")
                rate = statistics.median(values["train/samples_per_second"][-3:])
                wait = values["train/data_wait"][-1]
                table.add(
                    what, "vlkd", rate=rate, unit="pairs/s", note=f"waits for data {wait:.1%}"
                )
            with table.case(what, "torch"):
                timing = measure(_plain_step(batch, pairs, table.device), table.device)
                table.add(what, "torch", timing, rate=batch / timing.seconds, unit="pairs/s")


def _plain_step(batch: int, rows: int, device: torch.device) -> Any:
    features = [torch.randn(rows, WIDTH, device=device) for _ in range(2)]
    heads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)).to(device)
    scale = nn.Parameter(torch.tensor(2.66, device=device))
    optimizer = torch.optim.AdamW([*heads.parameters(), scale], lr=1e-4, fused=True)
    matches = torch.arange(batch, device=device)

    def step() -> None:
        chosen = torch.randint(rows, (batch,), device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            image, text = (
                F.normalize(head(table[chosen]), dim=1)
                for head, table in zip(heads, features, strict=True)
            )
            logits: Tensor = scale.exp() * image @ text.T
            loss = (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def decoding(table: Table, tiny: bool) -> None:
    """The fraction of a training's time spent waiting for JPEG files, 640 x 480 pixels each."""
    model, batch, steps = (TINY, 8, 4) if tiny else ("ViT-B-16", 256, 24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_data(folder, 4 if tiny else 48, size=(48, 64) if tiny else (480, 640))
        _repeat_files(folder, batch * steps)
        for workers in (1,) if tiny else (8, 16):
            what = f"{model}, batch {batch}, JPEG files of 640 x 480, {workers} loader workers"
            with table.case(what, "vlkd"):
                recipe = {
                    "towers": {kind: tower(model, kind) for kind in ("image", "text")},
                    "distillers": [{"name": "infonce"}],
                    "data": {
                        "reader": "csv",
                        "path": str(folder / "pairs.csv"),
                        "sep": "\t",
                        "augment": {"name": "standard", "scale": [0.9, 1.0]},
                        "workers": workers,
                    },
                    "train": _settings(folder, batch, steps, steps // 4),
                    "optimizer": {"name": "adamw", "lr": 1e-4},
                }
                values = _train(recipe, folder, table.device, f"decoding_{workers}")
                rate = values["train/samples_per_second"][-1]
                wait = values["train/data_wait"][-1]
                table.add(
                    what, "vlkd", rate=rate, unit="images/s", note=f"waits for data {wait:.1%}"
                )


def _repeat_files(folder: Path, count: int) -> None:
    """So many files of their own, with links to those there are."""
    head, *lines = (folder / "pairs.csv").read_text().splitlines()
    repeated = [head]
    for number in range(count):
        path, caption = lines[number % len(lines)].split("\t")
        link = folder / f"link_{number:06}.jpg"
        link.hardlink_to(path)
        repeated.append(f"{link}\t{caption}")
    (folder / "pairs.csv").write_text("\n".join(repeated) + "\n")


def _settings(folder: Path, batch: int, steps: int, log_every: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch_size": batch,
        "precision": "bf16",
        "log_every_steps": max(log_every, 1),
        "save_every_epochs": None,
        "cache_dir": str(folder / "cache"),
    }


def _train(
    recipe: dict[str, Any], folder: Path, device: torch.device, name: str
) -> dict[str, list[float]]:
    """Values of each logged quantity, in the order of the steps."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    place: dict[str, int] = {"gpus": 1} if device.type == "cuda" else {"cpu_workers": 1}
    request = TrainRequest(recipe=str(path), run=folder / name, quiet=True, **place)  # type: ignore[arg-type]
    status = start_training(request)
    if status != 0:
        raise RuntimeError(f"the run ended with status {status}")
    return {
        key: [value for _, value in values]
        for key, values in read_metrics(folder / name).items()
        if not key.endswith("loss")
    }
