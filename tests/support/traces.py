"""Train a recipe and read back the numbers that the run leaves: the only part of the golden traces
that knows how a run is started and what its folder and checkpoint look like."""

from __future__ import annotations

import csv
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.support.ranks import run_on_ranks
from vlkd_cli.app import main

TOLERANCE = 2e-4
"""Relative. Two processors differ by less after 20 steps, a wrong step by far more."""
_CLOCKS = ("samples_per_second", "data_wait")
STOPS = "tests.support.failing:Stops"

Trace = dict[str, Any]
"""`series`: metric -> its value at every step. `weights`: part of the run -> one row per tensor of
(name, number of values, norm, sum, projection)."""


def train(
    recipe: Mapping[str, Any],
    folder: Path,
    *options: str,
    name: str = "trace",
    resume: bool = False,
    expected: int = 0,
) -> Path:
    """Train in this process in the folder `run` of `folder`, and return that folder.

    Args:
        options: of `vlkd train`.
        name: of the recipe's file.
        resume: continue the run that is there.
        expected: the command's exit status.
    """
    path, run = folder / f"{name}.yaml", folder / "run"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    try:
        main(["train", str(path), "--resume" if resume else "--run", str(run), "--quiet", *options])
        status = 0
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    assert status == expected, f"vlkd train ended with status {status}"
    return run


def stop_and_resume(recipe: Mapping[str, Any], folder: Path, step: int) -> Iterator[Path]:
    """Train up to a step, stop, and train the rest; gives the run folder after each half."""
    stops = {"name": STOPS, "step": step, "student": "text", "teacher": "text"}
    recipe = {**recipe, "distillers": [*recipe["distillers"], stops]}
    yield train(recipe, folder, expected=128 + signal.SIGINT)
    yield train(recipe, folder, resume=True)


def train_on_ranks(recipes: Mapping[str, Mapping[str, Any]], folder: Path, world_size: int) -> None:
    """Train every recipe in `folder/NAME/run`, all on one group of processes, as torchrun would."""
    run_on_ranks(_train_as_member, world_size, {**recipes}, folder, timeout_seconds=100)


def read_trace(run: Path) -> Trace:
    """The numbers of a finished run: what it logged at every step, and a digest of its weights."""
    series = {
        name.removeprefix("train/"): [_rounded(value) for value in rows]
        for name, rows in _metrics(run / "metrics.csv").items()
        if name.startswith("train/") and not name.endswith(_CLOCKS)
    }
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    weights: dict[str, list[list[Any]]] = {}
    for part, name, tensor in _tensors(state):
        if tensor.is_floating_point():
            weights.setdefault(part, []).append(_digest(name, tensor))
    return {"series": series, "weights": weights}


def trace_differences(expected: Trace, found: Trace) -> list[str]:
    """Where a trace differs from the recorded one, one line each.

    Metrics that were not recorded are ignored. Tensors are compared by value, whatever their names
    and order, so that a renamed parameter is not a difference.
    """
    lines = []
    for name, values in expected["series"].items():
        line = _series_difference(name, values, found["series"].get(name, []))
        lines += [line] if line else []
    for part, rows in expected["weights"].items():
        left = list(found["weights"].get(part, []))
        for row in rows:
            match = next((other for other in left if _is_same(row, other)), None)
            if match is None:
                like = f"{row[0]} ({row[1]} values, norm {row[2]})"
                lines.append(f"weights of {part}: no tensor like {like}")
            else:
                left.remove(match)
        lines += [f"weights of {part}: {row[0]} was not recorded" for row in left]
    extra = set(found["weights"]) - set(expected["weights"])
    return lines + [f"weights of {part} were not recorded" for part in sorted(extra)]


def _metrics(path: Path) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values.setdefault(row["name"], []).append(float(row["value"]))
    return values


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(part of the run, name in it, tensor) of everything that training changes."""
    for tower, tensors in state["towers"].items():
        yield from ((f"tower {tower}", name, tensor) for name, tensor in tensors.items())
    for kind in ("followers", "distillers"):
        for name, tensor in state[kind].items():
            part, _, rest = name.partition(".")
            yield f"{kind.removesuffix('s')} {part}", rest, tensor
    for name, tensor in state["ema"].items():
        _, part, rest = name.split(".", 2)
        yield f"average of {part}", rest, tensor


def _digest(name: str, tensor: torch.Tensor) -> list[Any]:
    values = tensor.detach().double().flatten()
    projection = values @ torch.arange(1, len(values) + 1, dtype=torch.float64).cos()
    numbers = (values.norm(), values.sum(), projection)
    return [name, len(values), *(_rounded(number.item()) for number in numbers)]


def _is_same(expected: Sequence[Any], found: Sequence[Any]) -> bool:
    norm = expected[2]
    pairs = zip(expected[2:], found[2:], strict=True)
    # A sum may nearly cancel, so it is as exact as the values that it adds up.
    slack = TOLERANCE * norm * math.sqrt(max(expected[1], 1)) + 1e-9
    allowed = (TOLERANCE * norm + 1e-9, slack, slack)
    close = (abs(a - b) <= limit for (a, b), limit in zip(pairs, allowed, strict=True))
    return expected[1] == found[1] and all(close)


def _series_difference(name: str, expected: Sequence[float], found: Sequence[float]) -> str | None:
    if len(expected) != len(found):
        return f"{name}: {len(found)} values instead of {len(expected)}"
    for step, (value, other) in enumerate(zip(expected, found, strict=True), start=1):
        if not math.isclose(value, other, rel_tol=TOLERANCE, abs_tol=1e-7):
            return f"{name}: {other} instead of {value} at step {step}"
    return None


def _rounded(value: float) -> float:
    return float(f"{value:.8g}")


def _train_as_member(recipes: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    for name, recipe in recipes.items():
        # The ranks write the same recipe, each to a file of its own.
        own = f"trace_{os.environ['RANK']}"
        train(recipe, folder / name, "--cpu-workers", os.environ["WORLD_SIZE"], name=own)
