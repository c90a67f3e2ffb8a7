"""Resume a run on another number of processes, with the same global batches.

The order of samples, captions, augmentation, queues and schedules do not depend on how a batch is
divided, so each process takes its part of the batches that the run began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.distributed import runtime
from vlkd_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from vlkd_cli.engine.build import Training

_RANDOM = ("drop", "stochasticdepth")


def on_this_group(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The run's recipe with `train.batch_size` for this number of processes.

    Raises:
        CheckpointError: the batches cannot be divided evenly.
    """
    rows = checkpoint.rows_per_process(runtime.world_size())
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": rows})})


def changes_of_group(training: Training, checkpoint: Checkpoint) -> Iterator[str]:
    """What another number of processes changes, one line each; nothing for the same number."""
    before, now = checkpoint.world_size, runtime.world_size()
    if before == now:
        return
    yield (
        f"{checkpoint.global_batch} rows a batch: {checkpoint.global_batch // before} on each of"
        f" {before} processes before, {training.recipe.train.batch_size} on each of {now} now."
    )
    modules = [module for module in training.composition.modules() if module.training]
    varying = []
    if any(drops(module) for module in modules):
        varying.append("each process samples its own dropout")
    if any(isinstance(module, _BatchNorm) for module in modules):
        varying.append("batch norms see the rows of their own process")
    if varying:
        yield f"Losses will differ from those of {before} processes: {' and '.join(varying)}."


def drops(module: nn.Module) -> bool:
    """Whether a module leaves something out at random: dropout, of paths and of patches too
    (`Dropout.p`, `DropPath.drop_prob`, `PatchDropout.prob`), and attention that has its rate as
    a number (`MultiheadAttention.dropout`)."""
    named = any(word in type(module).__name__.lower() for word in _RANDOM)
    return any(
        type(value) is float and value > 0 and (named or "drop" in name.lower())
        for name, value in vars(module).items()
    )
