"""`vlkd export --format onnx`: towers as ONNX files, compared on the recipe's own samples, and what
8-bit weights cost on its own evaluations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlkd_cli import console
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.errors import UserError
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.evaluation_data import with_data
from vlkd_cli.recipe.modality import PAIR, is_named
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.recipe.snapshot import recipe_to_json
from vlkd_cli.towers.export import DUAL, ExportedTower, logit_start_of
from vlkd_cli.towers.onnx.check import agree
from vlkd_cli.towers.onnx.files import INT8, MODEL
from vlkd_cli.towers.onnx.graph import IMAGES, require_packages, tokenizer_of
from vlkd_cli.towers.onnx.session import SessionTower, as_pixels
from vlkd_cli.towers.onnx.write import (
    Wanted,
    export_onnx,
    export_onnx_pair,
    refuse_untraceable,
    trial_inputs,
)
from vlkd_cli.towers.tower import Tower

NUM_SAMPLES = 8
TRAINING_SUITES = ("elevater", "fine_tune")
"""Suites that train a tower, which a file cannot be."""
Inputs = dict[str, Tensor]


class OnnxOptions(NamedTuple):
    """What is written.

    Args:
        normalize: L2-normalize vectors inside the graphs.
        int8: also write copies with 8-bit weights, and print what both score.
    """

    normalize: bool = False
    int8: bool = False


def write_onnx(
    recipe: Recipe,
    checkpoint: Checkpoint,
    towers: Mapping[str, Tower],
    every: Mapping[str, Tower],
    options: OnnxOptions,
    folder: Path,
    destination: Path,
) -> list[ExportedTower]:
    """Write each tower to `folder/TOWER`, and an image and a text tower of one width together to
    `folder/dual_encoder`.

    Args:
        towers: by name; all that is written.
        every: all towers of the run, which its evaluations may need.
        destination: where the folder will be when it is done.

    Raises:
        UserError: a tower cannot be traced, or its file gives other vectors.
    """
    require_packages()
    for name, tower in towers.items():
        refuse_untraceable(tower, f"tower '{name}'")
    digest = hashlib.sha256(recipe_to_json(recipe).encode()).hexdigest()
    source = checkpoint.source
    facts = {"recipe_digest": digest, "trained": f"run {source.run}, step {source.step}"}
    wanted = Wanted(*options, facts)
    samples = {name: list(_samples(recipe, tower)) for name, tower in towers.items()}
    written = []
    for name, tower in towers.items():
        console.announce(f"Writing tower {name} ...")
        (folder / name).mkdir()
        written.append(
            export_onnx(
                tower.eval(), folder / name, destination / name, samples[name], wanted, name=name
            )
        )
    pair = _pair(towers)
    if pair is not None:
        (folder / DUAL).mkdir()
        start = logit_start_of(checkpoint.distillers)
        image, text = (towers[name] for name in pair)
        both = zip(samples[pair[0]], samples[pair[1]], strict=False)
        written.append(
            export_onnx_pair(
                image,
                text,
                folder / DUAL,
                destination / DUAL,
                [{**first, **second} for first, second in both],
                wanted,
                scale=1.0 if start is None else start.scale,
                bias=0.0 if start is None else start.bias or 0.0,
            )
        )
    if options.int8:
        _compare_int8(recipe, towers, every, folder)
    return written


def _pair(towers: Mapping[str, Tower]) -> tuple[str, str] | None:
    """The names of an image and a text tower of one width, where these are all there is."""
    names = {tower.modality: name for name, tower in towers.items()}
    if len(towers) != 2 or set(names) != set(PAIR):
        return None
    first, second = towers.values()
    return (names["image"], names["text"]) if first.width == second.width else None


def _samples(recipe: Recipe, tower: Tower) -> Iterator[Inputs]:
    """The first samples of the recipe's data as a graph takes them; none where the data is not
    here."""
    if recipe.data is None:
        return
    try:
        reader = open_reader(recipe.data)
    except UserError as error:
        console.note(f"The recipe's data is not compared: {error}")
        return
    if not isinstance(reader, Reader):
        return
    items: list[Any] = []
    for index in range(min(NUM_SAMPLES, len(reader))):
        try:
            if is_named(tower.modality):
                items += reader.captions(index)[:1]
            else:
                items += [reader.image(index)]
                MODALITIES["image"].load(items[-1:], tower.input)
        # What is damaged is the loader's matter; here it is left out.
        except (Broken, UserError, OSError):
            items = items[: len(items) - (not is_named(tower.modality))]
    if not items:
        return
    if isinstance(tower.input, ImageInput):
        images = MODALITIES["image"].load(items, tower.input)
        assert isinstance(images, Tensor)
        yield {IMAGES: as_pixels(images, tower.input)}
    else:
        yield dict(tokenizer_of(tower)(items))


def _compare_int8(
    recipe: Recipe, towers: Mapping[str, Tower], every: Mapping[str, Tower], folder: Path
) -> None:
    """Print what the files and their 8-bit copies score on the recipe's evaluations; without any,
    how near their vectors are."""
    full, small = (
        {name: SessionTower(folder / name / file, tower) for name, tower in towers.items()}
        for file in (MODEL, INT8)
    )
    specs = [with_data(recipe, spec) for spec in recipe.evals if spec.suite not in TRAINING_SUITES]
    if specs:
        try:
            _print_scores(recipe, {**every, **full}, {**every, **small}, specs)
            return
        except UserError as error:
            reason = str(error)
    else:
        reason = "the recipe has no `evals:` for it. Add one, e.g. with --set"
    console.warn(f"the accuracy of 8-bit weights was not measured: {reason.rstrip('.')}.")
    for name, tower in towers.items():
        batches = [batch.get(IMAGES, batch) for batch in trial_inputs(tower)]
        agreement = agree([(full[name].encode(each), small[name].encode(each)) for each in batches])
        console.say(f"{name}, int8 next to fp32: {agreement}.")


def _print_scores(
    recipe: Recipe,
    full: Mapping[str, Tower],
    small: Mapping[str, Tower],
    specs: Sequence[EvalSpec],
) -> None:
    device = torch.device("cpu")
    found = [run_suites(subject_of(recipe, own, device), specs) for own in (full, small)]
    rows = []
    for first, second in zip(*found, strict=True):
        metric = first.primary_metric
        before, after = first.metrics[metric], second.metrics[metric]
        chance = first.chance.get(metric)
        values = [f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"]
        random = "" if chance is None else f"{chance:.4f}"
        rows.append([first.name, first.dataset, metric, *values, random])
    columns = ["suite", "data", "metric", "fp32", "int8", "change", "chance"]
    console.print_table("Accuracy of 8-bit weights", columns, rows)
