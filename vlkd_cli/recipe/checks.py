"""What a recipe's settings mean together: impossible combinations, and settings that would have no
effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlkd_cli.catalog import did_you_mean, missing_extra
from vlkd_cli.errors import MissingPackageError
from vlkd_cli.recipe.address import MAIN_VIEW, RESERVED, modality_of, parse_address, pictures_of
from vlkd_cli.recipe.arrow_checks import check_arrows
from vlkd_cli.recipe.cache_checks import check_caches
from vlkd_cli.recipe.data_checks import check_offers
from vlkd_cli.recipe.evaluation_data import (
    check_evaluation_data,
    check_wanted_by_suites,
)
from vlkd_cli.recipe.groups import check_groups
from vlkd_cli.recipe.head_checks import check_heads
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.metric_names import check_metrics
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.optimizers import ELEMENTWISE
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schedules import check_schedules
from vlkd_cli.recipe.schema import EvalSpec, Recipe, Start
from vlkd_cli.recipe.synthesis_checks import check_synthesis
from vlkd_cli.recipe.tower_checks import check_towers, trains_backbone


def check_recipe(recipe: Recipe) -> list[Problem]:
    """Every problem of a recipe whose shape is right."""
    return [
        *check_towers(recipe),
        *check_caches(recipe),
        *check_arrows(recipe),
        *check_heads(recipe),
        *_check_data(recipe),
        *check_offers(recipe),
        *_check_training(recipe),
        *_check_evals(recipe),
        *check_evaluation_data(recipe),
        *check_wanted_by_suites(recipe),
        *check_groups(recipe),
        *check_synthesis(recipe),
        *check_metrics(recipe),
    ]


def check_sinks(recipe: Recipe) -> Iterator[Problem]:
    """Sinks whose package is not installed; of interest only where the recipe is to be trained."""
    for number, report in enumerate(recipe.reports):
        name = report if isinstance(report, str) else report.name
        extra = missing_extra("sink", name)
        if extra is not None:
            yield Problem(("reports", number), str(MissingPackageError(f"sink '{name}'", extra)))


def check_batch(recipe: Recipe, processes: int) -> Iterator[Problem]:
    """Distillers that need more samples a step than so many processes read together."""
    batch = recipe.train.batch_size * processes
    for number, spec in enumerate(recipe.distillers):
        least = attributes_of("distiller", spec.name).get("minimum_batch", 1)
        if batch < least:
            yield Problem(
                ("distillers", number),
                f"distiller '{spec.name}' needs at least {least} samples a step over all processes"
                f" and gets {batch}. Raise train.batch_size, or train on more processes.",
            )


def _check_data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data is None:
        return
    if data.reader is not None and data.readers is not None:
        yield Problem(
            ("data", "readers"),
            "data has 'reader' or 'readers', not both. Move the one reader into the list.",
        )
    if data.readers is not None and not data.readers:
        yield Problem(("data", "readers"), "an empty list reads nothing.")
    if data.workers == 0 and data.prefetch != type(data).model_fields["prefetch"].default:
        yield Problem(("data", "prefetch"), "has no effect without workers (workers: 0).")
    for view in data.views:
        if not view.isidentifier() or view in RESERVED:
            yield Problem(
                ("data", "views", view),
                "a view's name is made of letters, digits and underscores and is none of"
                f" {', '.join(RESERVED)}.",
            )


def _check_chunk(recipe: Recipe) -> Iterator[Problem]:
    chunk = recipe.train.chunk
    if chunk is None:
        return
    views = (MAIN_VIEW, *(recipe.data.views if recipe.data is not None else ()))
    most = recipe.train.batch_size * max(pictures_of(recipe.data, view) for view in views)
    if chunk >= most:
        yield Problem(
            ("train", "chunk"),
            f"has no effect: a step has at most {most} pictures or texts at once. Lower it, or"
            " raise train.batch_size.",
        )
    if not any(trains_backbone(tower) for tower in recipe.towers.values()):
        yield Problem(
            ("train", "chunk"),
            "has no effect: every backbone is frozen, and only heads store activations. Remove it.",
        )


def _check_checkpointing(recipe: Recipe) -> Iterator[Problem]:
    trained = any(trains_backbone(tower) for tower in recipe.towers.values())
    if recipe.train.checkpoint_activations and not trained:
        yield Problem(
            ("train", "checkpoint_activations"),
            "has no effect: every backbone is frozen and stores no activations. Remove it.",
        )


def _check_saving(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    in_between = train.save_every_epochs is not None and train.save_every_epochs < train.epochs
    saves = in_between or train.save_every_steps or train.save_every_minutes or recipe.evals
    if train.save_in_background and not saves:
        yield Problem(
            ("train", "save_in_background"),
            "has no effect: only the end of the run is saved, and waited for. Remove it, or set"
            " train.save_every_steps.",
        )


def _check_sharding(recipe: Recipe) -> Iterator[Problem]:
    train, path = recipe.train, ("train", "shard")
    if train.shard == "none":
        return
    if not any(trains_backbone(tower) for tower in recipe.towers.values()):
        yield Problem(
            path, "has no effect: every backbone is frozen, and only trained ones are divided."
        )
    if train.channels_last:
        yield Problem(path, "divides weights in rows only. Remove train.channels_last.")
    if recipe.optimizer.name.lower() not in ELEMENTWISE:
        yield Problem(
            path,
            f"optimizer '{recipe.optimizer.name}' needs whole weights. Choose one of:"
            f" {', '.join(sorted(ELEMENTWISE))}.",
        )


def _check_training(recipe: Recipe) -> Iterator[Problem]:
    optimizer = recipe.optimizer
    yield from _check_chunk(recipe)
    yield from _check_saving(recipe)
    yield from _check_checkpointing(recipe)
    yield from _check_sharding(recipe)
    if recipe.train.tf32 and recipe.train.precision != "fp32":
        yield Problem(
            ("train", "tf32"),
            f"has no effect with precision: {recipe.train.precision}, which multiplies in 16 bits."
            " Remove it.",
        )
    yield from check_schedules(recipe)
    if optimizer.decay_all and optimizer.weight_decay == 0:
        yield Problem(("optimizer", "decay_all"), "has no effect with weight_decay: 0.")
    if optimizer.groups and optimizer.groups[-1].is_plain:
        path: Path = ("optimizer", "groups", len(optimizer.groups) - 1)
        yield Problem(path, "has no effect: it sets nothing for what it matches. Remove it.")
    for number, group in enumerate(optimizer.groups):
        yield from _check_start(recipe, group.from_, ("optimizer", "groups", number, "from"))
    suites = [entry.title for entry in recipe.evals]
    best = recipe.train.best
    if best is not None and best.partition(".")[0] not in suites:
        guess = did_you_mean(best.partition(".")[0], suites)
        known = (
            f"Suites of this recipe: {', '.join(suites)}."
            if suites
            else "Add its suite under evals."
        )
        yield Problem(("train", "best"), f"no entry of evals gives '{best}'.{guess} {known}")
    yield from _check_patience(recipe)
    names = [report if isinstance(report, str) else report.name for report in recipe.reports]
    for name, count in Counter(names).items():
        if count > 1:
            yield Problem(("reports",), f"'{name}' is listed {count} times.")


def _check_patience(recipe: Recipe) -> Iterator[Problem]:
    """Early stopping that never could."""
    train = recipe.train
    if train.patience is None:
        if train.min_delta:
            yield Problem(("train", "min_delta"), "has no effect without train.patience.")
        return
    if train.best is None:
        yield Problem(
            ("train", "patience"),
            "needs train.best, the result that it watches: `best: retrieval.mean_recall`.",
        )
        return
    watched = [entry for entry in recipe.evals if entry.title == train.best.partition(".")[0]]
    if watched and not any(entry.every_epochs or entry.every_steps for entry in watched):
        yield Problem(
            ("train", "patience"),
            f"has no effect: '{watched[0].title}' is evaluated at the ends of the run only. Add"
            " `every_epochs: 1` to its entry of evals.",
        )


def _check_start(recipe: Recipe, start: Start | None, path: Path) -> Iterator[Problem]:
    """A group of parameters that is never trained."""
    if start is None:
        return
    train = recipe.train
    if start.epochs is not None and start.epochs >= train.epochs:
        yield Problem(path, f"is never reached: the run has {train.epochs} epochs, counted from 0.")
    elif start.steps is not None and train.steps is not None and start.steps >= train.steps:
        yield Problem(path, f"is never reached: the run has {train.steps} steps, counted from 0.")


def _check_evals(recipe: Recipe) -> Iterator[Problem]:
    modalities = {modality_of(recipe.towers, name) for name in recipe.towers}
    followed = any(tower.run is not None for tower in recipe.towers.values())
    for number, entry in enumerate(recipe.evals):
        path = ("evals", number)
        for earlier, other in enumerate(recipe.evals[:number]):
            # Without names, results of one suite are distinguished by their data.
            if entry.title == other.title and (entry.name is not None or other.name is not None):
                yield Problem(
                    path,
                    f"its results would be called '{entry.title}', as those of evals[{earlier}]."
                    " Give one of them another `name:`.",
                )
                break
        yield from _check_eval_tower(recipe, entry, (*path, "tower"))
        for key in attributes_of("suite", entry.suite).get("address_keys", ()):
            yield from _check_eval_address(recipe, entry.keys.get(key), (*path, key))
        if entry.reference and not entry.last:
            yield Problem(
                (*path, "reference"),
                "compares the end of the run with its start, and last: false leaves the end out."
                " Remove one of them.",
            )
        if entry.reference and entry.first:
            yield Problem((*path, "first"), "has no effect with reference: true. Remove it.")
        if not (entry.every_epochs or entry.every_steps or entry.first or entry.last):
            yield Problem(path, "never runs: set every_epochs, every_steps, first or last.")
        needed = attributes_of("suite", entry.suite).get("modalities", frozenset())
        missing = (
            sorted(needed - modalities)
            if isinstance(needed, frozenset | set) and not followed and None not in modalities
            else []
        )
        if missing:
            yield Problem(
                (*path, "suite"),
                f"'{entry.suite}' needs a tower for {' and '.join(missing)}, and the recipe has"
                " none.",
            )


def _check_eval_address(recipe: Recipe, text: object, path: Path) -> Iterator[Problem]:
    """Whether an address of an evaluation is one of a tower that exists."""
    if not isinstance(text, str):
        return
    try:
        address = parse_address(text)
    except ValueError as error:
        yield Problem(path, f"{error}.")
        return
    if address.tower not in recipe.towers:
        guess = did_you_mean(address.tower, recipe.towers)
        towers = ", ".join(recipe.towers)
        yield Problem(path, f"no tower '{address.tower}'.{guess} Towers: {towers}.")
        return
    if address.output not in ("head", "backbone") or address.first is not None:
        yield Problem(path, f"'{text}' is not tower, tower.backbone or tower@TEXT.")
        return
    modality = modality_of(recipe.towers, address.tower)
    if address.input != MAIN_VIEW and modality is not None and FACTS[modality].has_views:
        yield Problem(
            path,
            f"@{address.input} has no effect on tower '{address.tower}', which reads"
            f" {FACTS[modality].plural}. Leave it out.",
        )


def _check_eval_tower(recipe: Recipe, entry: EvalSpec, path: Path) -> Iterator[Problem]:
    """Whether the tower that an evaluation names exists and encodes what the suite needs."""
    if entry.tower is None:
        return
    if entry.tower not in recipe.towers:
        guess = did_you_mean(entry.tower, recipe.towers)
        yield Problem(path, f"no tower '{entry.tower}'.{guess} Towers: {', '.join(recipe.towers)}.")
        return
    modality = modality_of(recipe.towers, entry.tower)
    needed = attributes_of("suite", entry.suite).get("modalities", frozenset())
    if modality is not None and needed and modality not in needed:
        yield Problem(
            path,
            f"'{entry.suite}' measures towers for {' and '.join(sorted(needed))}, and"
            f" '{entry.tower}' is one for {modality}. Name another.",
        )
