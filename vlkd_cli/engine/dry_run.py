"""`vlkd train --dry-run`: one step, and what it costs."""

from __future__ import annotations

import time

import torch

from vlkd_cli import console
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.build import Training
from vlkd_cli.engine.memory import CONTEXT_BYTES, FRAGMENTATION, what_fits
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.recipe.types import Progress
from vlkd_cli.towers.tower import Tower


def dry_run(training: Training, trainer: Trainer, memory: int | None = None) -> None:
    """Take one step and print the towers' sizes, the loss as the sum of its terms, time and
    memory; and what fits into so many bytes of a GPU."""
    batches = training.loader.batches(0)
    begin = time.perf_counter()
    rows = [next(batches) for _ in range(training.recipe.train.accumulate)]
    output, norm = trainer.step(rows)
    seconds = time.perf_counter() - begin
    training.loader.close()
    table = [
        [name, *(f"{count:,}" for count in tower_sizes(tower)), str(tower.width), how]
        for name, tower in training.towers.items()
        for how in [_how(name, tower, training)]
    ]
    extra = sum(
        parameter.numel()
        for parameter in training.composition.distillers.parameters()
        if parameter.requires_grad
    )
    table.append(["distillers", f"{extra:,}", f"{extra:,}", "", ""])
    console.print_table("Parameters", ["tower", "total", "trainable", "width", ""], table)
    console.say(
        f"One step took {seconds:.2f} s: loss {float(output.loss):.4f} ="
        f" {_sum_of_terms(training, output.terms)}; gradient norm {norm:.3f}."
    )
    console.say(
        f"{training.steps_per_epoch} steps per epoch, {training.total_steps} in all; peak memory"
        f" {_peak_memory(training.device)}."
    )
    if memory is not None:
        _say_what_fits(trainer, rows[0], memory)


def _say_what_fits(trainer: Trainer, batch: Batch, memory: int) -> None:
    size = f"{memory / 2**30:.4g} GiB"
    fits = what_fits(trainer, batch, memory)
    if not fits:
        console.say(
            f"Not even the smallest batch fits into {size}. Use smaller towers, freeze them, or set"
            " train.checkpoint_activations or train.shard."
        )
        return
    how = "measured" if trainer.device.type == "cuda" else "counted"
    console.print_table(
        f"Largest that fits into a GPU of {size} ({how})",
        ["train.batch_size", "train.chunk", "GiB"],
        [
            [f"{fit.batch_size:,}", f"{fit.chunk or '-'}", f"{fit.num_bytes / 2**30:.2f}"]
            for fit in fits
        ],
    )
    spared = (FRAGMENTATION - 1) * 100
    console.say(
        f"GiB include {CONTEXT_BYTES / 2**30:.1f} for CUDA and {spared:.0f} % for fragmentation."
    )


def tower_sizes(tower: Tower | MomentumTower) -> tuple[int, int]:
    """(parameters in all, trainable ones), the frozen backbone counted."""
    if isinstance(tower, MomentumTower):
        return tower_sizes(tower.tower)[0], 0
    return tower.count_parameters()


def _how(name: str, tower: Tower | MomentumTower, training: Training) -> str:
    if name in training.cached:
        return "cached features"
    return "follows" if isinstance(tower, MomentumTower) else ""


def _sum_of_terms(training: Training, terms: dict[str, torch.Tensor]) -> str:
    start = Progress(0, training.steps_per_epoch, training.total_steps)
    parts = []
    for objective in training.composition.objectives:
        weight, value = start.value(objective.weight), float(terms[objective.name])
        factor = "" if weight == 1 else f"{weight:g} x "
        parts.append(f"{factor}{objective.name} {value:.4f}")
    return " + ".join(parts)


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on the GPU"
    import resource

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
