"""A recipe made live: towers, objectives, data, optimizer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from vlkd_cli import console
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.composition.composition import Composition, Objective, SetupError
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.excluded import excluded_names, excluding
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.distillers.distiller import DataFacts, Distiller
from vlkd_cli.distillers.widths import AtWidths
from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.sharding import divide
from vlkd_cli.engine.agreement import open_everywhere, refuse_other_weights
from vlkd_cli.engine.determinism import seed_everything
from vlkd_cli.engine.draw_fill import DrawFill
from vlkd_cli.engine.inputs import Towers, build_loader, prepare_inputs
from vlkd_cli.engine.optim import build_optimizer
from vlkd_cli.engine.regroup import refuse_other_group
from vlkd_cli.engine.schedules import cooldown_start
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.features.draw_tables import say_what_is_stored
from vlkd_cli.recipe.address import Address, arrow_of
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.contract import contract_of
from vlkd_cli.recipe.messages import Path as KeyPath
from vlkd_cli.recipe.messages import Problem, report
from vlkd_cli.recipe.objectives import check_widths, listed
from vlkd_cli.recipe.schema import DataSpec, DistillerSpec, InitSpec, Recipe, TowerSpec, TrainSpec
from vlkd_cli.recipe.types import Progress
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.blocks import checkpoint_activations, repeated_blocks_of
from vlkd_cli.towers.inherit import inherit
from vlkd_cli.towers.outputs import HEAD
from vlkd_cli.towers.tower import Tower

EXCLUDED = "excluded.txt"
"""In a checkpoint's files: the names of the samples that the run leaves out."""


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
    excluded = _excluded(data, resumed)
    reader = open_everywhere(lambda: _opened(data, excluded))
    if resumed is not None and isinstance(reader, StreamReader):
        refuse_other_group(resumed)
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
    loader = episode_loader = build_loader(recipe, composition, inputs, towers, device)
    if not composition.input_keys(episode=True).items() <= composition.input_keys().items():
        episode_loader = build_loader(recipe, composition, inputs, towers, device, episode=True)
    _divide_backbones(composition, recipe, device)
    steps_per_epoch = loader.batches_per_epoch // settings.accumulate
    total_steps = min(steps_per_epoch * settings.epochs, settings.steps or sys.maxsize)
    run = Progress(0, steps_per_epoch, total_steps)
    if settings.channels_last:
        composition.to(memory_format=torch.channels_last)
    _check_data(composition, reader, loader, settings.batch_size * runtime.world_size())
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
        files={EXCLUDED: "\n".join(excluded).encode("utf-8", "surrogateescape")}
        if excluded
        else {},
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        cooldown_start=cooldown_start(recipe, run),
    )


def _put_on_device(towers: Towers, settings: TrainSpec, device: torch.device) -> None:
    for tower in towers.values():
        if settings.sync_batch_norm and runtime.world_size() > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(tower)
        tower.to(device)


def _excluded(data: DataSpec, resumed: Checkpoint | None) -> list[str]:
    """The samples that the run leaves out; a resumed run leaves out the samples it began with,
    even if the file has changed since."""
    if data.exclude is None:
        return []
    if resumed is not None:
        return resumed.files[EXCLUDED].decode("utf-8", "surrogateescape").split("\n")
    return excluded_names(data.exclude)


def _opened(data: DataSpec, excluded: Sequence[str]) -> Reader | StreamReader:
    reader = open_reader(data)
    return excluding(reader, excluded) if data.exclude is not None else reader


def build_towers(
    recipe: Recipe,
    *,
    captions: Callable[[], Iterable[str]] | None,
    run_folder: Path | None,
    cache_dir: Path | None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Towers:
    """Every tower of the recipe, with the same initial weights on every rank.

    Args:
        captions: for a tokenizer that is trained on them; None where weights of a checkpoint
            follow, whose `files` hold the tokenizer.
    """
    towers: Towers = {}
    outputs = outputs_read(recipe)
    for name, spec in sorted(recipe.towers.items(), key=_comes_late):
        # A copy of another tower starts from that tower's random weights.
        seed_everything(recipe.train.seed, "weights", spec.like if spec.like in towers else name)
        if spec.follows is not None:
            followed = towers[spec.follows]
            assert isinstance(followed, Tower)
            towers[name] = MomentumTower(
                followed,
                follows=spec.follows,
                momentum=spec.momentum,
                name=name,
                outputs=outputs[name],
                masks=spec.masks,
                shuffle=spec.shuffle,
                seed=recipe.train.seed,
            )
            continue
        # Every rank builds at once: libraries lock what they download, and a tokenizer is trained
        # by the first rank and broadcast.
        towers[name] = assemble(
            name,
            spec,
            outputs=outputs[name],
            captions=captions,
            cache_dir=cache_dir,
            run_folder=run_folder,
            files=files,
        )
        if spec.init is not None and spec.init.from_ in towers:
            _inherit(towers[name], towers[spec.init.from_], spec.init)
    return {name: towers[name] for name in recipe.towers}


def _inherit(student: Tower | MomentumTower, source: Tower | MomentumTower, init: InitSpec) -> None:
    assert isinstance(student, Tower) and isinstance(source, Tower)
    student.inherited = inherit(
        student.encoder, source.encoder, init.layers, init.from_, student.name
    )


def _comes_late(item: tuple[str, TowerSpec]) -> tuple[bool, bool, bool]:
    """Followers, copies and students come after the towers that they follow, copy or inherit
    from."""
    spec = item[1]
    return spec.follows is not None, spec.init is not None, spec.like is not None


def outputs_read(recipe: Recipe) -> dict[str, set[str]]:
    """What a recipe's distillers and evaluations read of each tower; a follower's outputs are read
    of the followed tower's heads as well."""
    read: dict[str, set[str]] = {name: set() for name in recipe.towers}
    for spec in recipe.distillers:
        arrow = arrow_of(recipe, spec)
        for address in (*arrow.addresses(), *arrow.episode_addresses()):
            read[address.tower].add(address.output)
    for entry in recipe.evals:
        if entry.tower in read:
            read[entry.tower].add(HEAD)
    for name, tower in recipe.towers.items():
        if tower.follows is not None:
            read[tower.follows] |= read[name]
    return read


def made_files(towers: Iterable[Tower | MomentumTower]) -> dict[str, bytes]:
    """What the towers need in addition to their weights to be built again, by path in the run
    folder."""
    return {
        path: content
        for tower in towers
        if isinstance(tower, Tower)
        for path, content in tower.encoder.files.items()
    }


def say_sources(towers: Iterable[Tower]) -> None:
    """Print which checkpoint each tower out of a run was taken from, and what others inherit."""
    for tower in towers:
        if tower.source is not None:
            console.say(f"Tower '{tower.name}': {tower.source}")
        if tower.inherited is not None:
            console.say(f"Tower '{tower.name}' {tower.inherited}.")


def build_objectives(recipe: Recipe) -> list[Objective]:
    """The distillers with the arrows between what they compare; a name used twice gets a number."""
    objectives: list[Objective] = []
    seed_everything(recipe.train.seed, "distillers")
    for spec in recipe.distillers:
        arrow = arrow_of(recipe, spec)
        base = spec.name.split(":")[-1]
        taken = {objective.name for objective in objectives}
        name = next(
            n
            for n in [base, *(f"{base}_{k}" for k in range(2, len(recipe.distillers) + 2))]
            if n not in taken
        )
        objectives.append(
            Objective(
                name,
                _distiller(spec),
                arrow,
                spec.weight,
                contract_of(spec.name),
            )
        )
    return objectives


def _distiller(spec: DistillerSpec) -> Distiller:
    inner = [make("distiller", spec.name, spec.keys) for _ in spec.widths or [0]]
    return AtWidths(inner, spec.widths, spec.width_weights) if spec.widths else inner[0]


def build_composition(
    recipe: Recipe,
    towers: Towers,
    *,
    num_rows: int | None = None,
    origins: Mapping[KeyPath, str] = MappingProxyType({}),
) -> Composition:
    """The towers connected by the recipe's distillers.

    Args:
        num_rows: of the data set; None for streams.
        origins: `file:line` of the recipe's keys, for messages.

    Raises:
        RecipeError: outputs that a distiller cannot compare, with its key in the recipe and its
        addresses.
    """
    objectives = build_objectives(recipe)
    problems = list(_unequal_widths(recipe, objectives, towers))
    problems += _start_from_towers(objectives, towers)
    if not problems:
        try:
            return Composition(towers, objectives, num_rows=num_rows, chunk=recipe.train.chunk)
        except SetupError as error:
            problems = [Problem(("distillers", error.number), str(error))]
    raise RecipeError(report(origins, problems, "the recipe"))


def _start_from_towers(objectives: list[Objective], towers: Towers) -> Iterator[Problem]:
    """Set objectives with `logit_scale: from towers` to the start that both towers agree on."""
    for number, objective in enumerate(objectives):
        distiller = objective.distiller
        if not getattr(distiller, "starts_from_towers", False):
            continue
        found = {
            getattr(getattr(tower.encoder, "origin", None), "start", None)
            for address in objective.arrow.addresses()
            for tower in [towers[address.tower]]
        }
        start = next(iter(found))
        if len(found) > 1 or start is None:
            reason = "differ in it" if None not in found else "are not halves of a dual encoder"
            yield Problem(
                ("distillers", number, "logit_scale"),
                f"'from towers': its towers {reason}. Write a number.",
            )
        else:
            distiller.start_from(*start)  # type: ignore[operator]


def _unequal_widths(
    recipe: Recipe, objectives: list[Objective], towers: Towers
) -> Iterator[Problem]:
    """Outputs that a distiller compares directly though their widths differ."""

    def width_of(address: Address) -> int:
        return towers[address.tower].width_of(address.output)

    for number, (spec, objective) in enumerate(zip(recipe.distillers, objectives, strict=True)):
        yield from check_widths(recipe, spec, objective.arrow, ("distillers", number), width_of)


def captions_of(reader: Reader | StreamReader) -> Callable[[], Iterable[str]] | None:
    """All captions of the data, one after another; for training a tokenizer. Samples without any
    are the loader's to count."""
    if not isinstance(reader, Reader):
        return None

    def captions() -> Iterator[str]:
        for index in range(len(reader)):
            with contextlib.suppress(Broken):
                yield from reader.captions(index)

    return captions


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


def _largest_target(reader: Reader | StreamReader, distillers: Sequence[Distiller]) -> float | None:
    """The largest target of the data, where a distiller needs targets and the reader knows
    them."""
    if not isinstance(reader, Reader) or not any("targets" in each.wants for each in distillers):
        return None
    targets = reader.targets_of(np.arange(len(reader)))
    return float(np.nanmax(targets)) if np.isfinite(targets).any() else None


def _check_data(
    composition: Composition, reader: Reader | StreamReader, loader: Loader, global_batch: int
) -> None:
    distillers = [objective.distiller for objective in composition.objectives]
    for objective in composition.objectives:
        if global_batch < objective.distiller.minimum_batch:
            raise RecipeError(
                f"distiller '{objective.name}' needs at least {objective.distiller.minimum_batch}"
                f" samples a step over all processes and gets {global_batch}. Raise"
                " train.batch_size."
            )
    highest = None
    if isinstance(reader, Reader) and any("labels" in each.wants for each in distillers):
        highest = int(reader.labels_of(np.arange(len(reader))).max(initial=-1))
    facts = DataFacts(
        loader.batches_per_epoch * global_batch,
        num_rows=len(reader) if isinstance(reader, Reader) else None,
        highest_label=highest,
        largest_target=_largest_target(reader, distillers),
    )
    for objective in composition.objectives:
        outputs, contract = listed(objective.arrow.calls[0].student), objective.contract
        if highest == -1 and contract is not None and contract.needs_labels(len(outputs)):
            raise DataError(
                f"distiller '{objective.name}' needs labels, and the data has none. Read labeled"
                " data."
            )
    for distiller in distillers:
        distiller.check_data(facts)
