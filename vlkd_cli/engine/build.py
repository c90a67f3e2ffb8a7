"""Everything that a training process works with, built in order: data, towers, composition,
optimizer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.composition.composition import Composition
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.sharding import divide
from vlkd_cli.engine.agreement import open_everywhere, refuse_other_weights
from vlkd_cli.engine.build_composition import build_composition
from vlkd_cli.engine.build_towers import build_towers, say_sources
from vlkd_cli.engine.draw_fill import DrawFill
from vlkd_cli.engine.inputs import Towers, build_loader, prepare_inputs
from vlkd_cli.engine.optim import build_optimizer
from vlkd_cli.engine.schedules import cooldown_start
from vlkd_cli.engine.training_data import (
    captions_of,
    check_data,
    excluded_samples,
    files_of,
    open_data,
    stream_parts,
)
from vlkd_cli.errors import RecipeError
from vlkd_cli.features.draw_tables import say_what_is_stored
from vlkd_cli.recipe.messages import Path as KeyPath
from vlkd_cli.recipe.schema import Recipe, TrainSpec
from vlkd_cli.recipe.types import Progress
from vlkd_cli.towers.blocks import checkpoint_activations, repeated_blocks_of
from vlkd_cli.towers.tower import Tower


@dataclass(frozen=True)
class Training:
    """What a training process works with.

    Args:
        towers: every tower as it was built; evaluations run these.
        cached: names of the towers whose features a step reads from the cache.
        storing: names of those that fill it during training.
        episode_loader: of what the start of an episode reads, in the same order; `loader` where a
            step reads the same.
        steps_per_epoch, total_steps: in optimizer steps.
        files: what the run needs to be resumed in addition to weights, for its checkpoints.
        cooldown_start: step at which the first cooldown of a schedule starts, if there is one.
    """

    recipe: Recipe
    device: torch.device
    towers: Towers
    cached: frozenset[str]
    storing: frozenset[str]
    composition: Composition
    loader: Loader
    episode_loader: Loader
    optimizer: torch.optim.Optimizer
    steps_per_epoch: int
    total_steps: int
    files: dict[str, bytes]
    cooldown_start: int | None

    def draw_fill(self) -> DrawFill | None:
        """What completes the tables of towers whose features are stored under augmentation; None
        where there are none."""
        if not self.storing:
            return None
        return DrawFill(
            self.composition,
            self.loader,
            self.device,
            batches=self.steps_per_epoch * self.recipe.train.accumulate,
            precision=self.recipe.train.precision,
        )

    def evaluated_towers(self) -> dict[str, Tower]:
        """The towers that suites may run, those that follow another among them."""
        return {
            name: tower.tower if isinstance(tower, MomentumTower) else tower
            for name, tower in self.towers.items()
        }


def build_training(
    recipe: Recipe,
    device: torch.device,
    *,
    run_folder: Path,
    resumed: Checkpoint | None = None,
    quiet: bool = False,
    origins: Mapping[KeyPath, str] = MappingProxyType({}),
    features: Path | None = None,
) -> Training:
    """Build everything that the recipe's `towers`, `distillers`, `data`, `optimizer` and `train`
    describe.

    Args:
        resumed: what the run will continue from; its files are used instead of making new ones.
        quiet: print nothing.
        origins: `file:line` of the recipe's keys, for messages.
        features: folder of cached features; by default that of `train.cache_dir`.

    Raises:
        UserError: something does not fit; raised before the first step.
    """
    settings = recipe.train
    _refuse_untrainable(recipe, device)
    assert recipe.data is not None
    data = recipe.data
    excluded = excluded_samples(data, resumed)
    reader = open_everywhere(lambda: open_data(data, excluded))
    parts = stream_parts(reader, resumed)
    towers = build_towers(
        recipe,
        captions=captions_of(reader) if resumed is None else None,
        run_folder=run_folder,
        cache_dir=cache_folder(settings.cache_dir),
        files={} if resumed is None else resumed.files,
    )
    if not quiet:
        say_sources(tower for tower in towers.values() if isinstance(tower, Tower))
    refuse_other_weights(tower for tower in towers.values() if isinstance(tower, Tower))
    _put_on_device(towers, settings, device)
    _checkpoint_activations(recipe, towers)
    inputs = prepare_inputs(
        recipe, reader, towers, device, features or cache_folder(settings.cache_dir)
    )
    if not quiet and runtime.is_main() and inputs.draws is not None:
        say_what_is_stored(inputs.tables, inputs.draws)
    composition = build_composition(
        recipe,
        inputs.towers,
        num_rows=len(reader) if isinstance(reader, Reader) else None,
        origins=origins,
    ).to(device)
    build = partial(build_loader, recipe, composition, inputs, towers, device, stream_parts=parts)
    loader = episode_loader = build()
    if not composition.input_keys(episode=True).items() <= composition.input_keys().items():
        episode_loader = build(episode=True)
    _divide_backbones(composition, recipe, device)
    steps_per_epoch = loader.batches_per_epoch // settings.accumulate
    total_steps = min(steps_per_epoch * settings.epochs, settings.steps or sys.maxsize)
    run = Progress(0, steps_per_epoch, total_steps)
    if settings.channels_last:
        composition.to(memory_format=torch.channels_last)
    check_data(composition, reader, loader, settings.batch_size * runtime.world_size())
    return Training(
        recipe=recipe,
        device=device,
        towers=towers,
        cached=frozenset({*inputs.stored, *inputs.tables}),
        storing=frozenset(inputs.tables),
        composition=composition,
        loader=loader,
        episode_loader=episode_loader,
        optimizer=build_optimizer(composition, recipe, run),
        files=files_of(excluded, parts),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        cooldown_start=cooldown_start(recipe, run),
    )


def _put_on_device(towers: Towers, settings: TrainSpec, device: torch.device) -> None:
    for tower in towers.values():
        if settings.sync_batch_norm and runtime.world_size() > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(tower)
        tower.to(device)


def _refuse_untrainable(recipe: Recipe, device: torch.device) -> None:
    if recipe.data is None or not recipe.distillers:
        raise RecipeError(
            "this recipe trains nothing: it needs `data:` and `distillers:`. Evaluate it with"
            " `vlkd eval`."
        )
    if recipe.train.shard != "none" and runtime.world_size() == 1:
        raise RecipeError(
            "train.shard: has no effect on one process, which holds all weights. Train on several"
            " (--gpus, --cpu-workers, --nodes), or set it to none."
        )
    if recipe.train.tf32 and device.type != "cuda":
        raise RecipeError(
            "train.tf32: only GPUs multiply in TF32. Set it to false to run on the CPU."
        )
    if recipe.train.sync_batch_norm and device.type != "cuda":
        raise RecipeError(
            "train.sync_batch_norm: torch synchronizes batch norms on GPUs only. Set it to false"
            " to run on the CPU."
        )


def _checkpoint_activations(recipe: Recipe, towers: Towers) -> None:
    if not recipe.train.checkpoint_activations:
        return
    trained = [
        tower
        for tower in towers.values()
        if isinstance(tower, Tower) and not tower.backbone_is_frozen
    ]
    if not sum([checkpoint_activations(tower.encoder) for tower in trained]):
        names = ", ".join(f"'{tower.name}'" for tower in trained)
        raise RecipeError(
            "train.checkpoint_activations has no effect: the trainable backbones"
            f"{f' ({names})' if names else ''} consist of no layers that could run again. Remove"
            " it, or use train.chunk."
        )


def _divide_backbones(composition: Composition, recipe: Recipe, device: torch.device) -> None:
    """Shard the weights of trained backbones, and of those that follow them, over the processes if
    the recipe sets `train.shard`."""
    if recipe.train.shard == "none":
        return
    followers = (follower.tower for follower in composition.followers.values())
    for tower in (*composition.towers.values(), *followers):
        assert isinstance(tower, Tower)
        if not tower.backbone_is_frozen:
            divide(tower.encoder, repeated_blocks_of(tower.encoder), device)
