"""Every sample of a recipe's training data read and decoded once, to know the broken ones before a
run meets them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from vlkd_cli import console
from vlkd_cli.data.batch import Lost, Skipped, View
from vlkd_cli.data.loading.loader import in_order, without_targets
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.excluded import excluded_names, excluding
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import TextView
from vlkd_cli.errors import UserError
from vlkd_cli.preprocessing import ImageInput, InputSpec, MeshInput
from vlkd_cli.recipe.address import MAIN_VIEW, modality_of, text_names
from vlkd_cli.recipe.arrow_checks import arrows_of
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.modality import is_named
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.types import ModalityName

_SMALL: dict[ModalityName, InputSpec] = {
    "image": ImageInput(size_px=(8, 8)),
    "mesh": MeshInput(points=1),
}
"""What a sample is prepared for: whatever is read and decoded on the way can be."""
_BATCH, _SAY_EVERY = 64, 100_000


def check_data(name: str, overrides: Sequence[str], output: Path) -> None:
    """Write the list of broken samples in the format of a run's `skipped.csv` and report their
    number.

    Args:
        name: of the recipe.
        overrides: changes of it.

    Raises:
        UserError: the recipe has no data, or a stream; or the list cannot be written.
    """
    recipe = load_recipe(name, overrides)
    if recipe.data is None:
        raise UserError(f"{name} has no `data:` to check.")
    reader = open_reader(recipe.data)
    if not isinstance(reader, Reader):
        raise UserError(
            f"{name}: its data is a stream, whose broken samples are replaced as they come. Only"
            " data with random access can be checked."
        )
    if recipe.data.exclude is not None:
        reader = excluding(reader, excluded_names(recipe.data.exclude))
    broken: list[Skipped | Lost] = [*reader.lost, *without_targets(reader).values()]
    seen = 0
    for batch in in_order(
        reader,
        _views(recipe),
        range(len(reader)),
        batch_size=_BATCH,
        workers=recipe.data.workers,
        skip=True,
    ):
        before, seen = seen, seen + len(batch) + len(batch.skipped)
        broken += batch.skipped
        if before // _SAY_EVERY != seen // _SAY_EVERY:
            console.say(f"{seen:,} of {len(reader):,} samples read, {len(broken):,} broken.")
    _write(output, broken)
    if not broken:
        console.say(f"All {len(reader):,} samples can be read; {output} is empty.")
        return
    console.say(
        f"{len(broken):,} of {len(reader):,} samples cannot be read, e.g. {broken[0].name}:"
        f" {broken[0].reason}. Leave them out with data.exclude: {output}"
    )


def _views(recipe: Recipe) -> dict[str, View]:
    """What the recipe's towers read of a sample, without augmentation and tokens."""
    views: dict[str, View] = {}
    for _, arrow, _ in arrows_of(recipe):
        for address in (*arrow.addresses(), *arrow.episode_addresses()):
            modality = modality_of(recipe.towers, address.tower) or "image"
            if not is_named(modality):
                views[modality] = MODALITIES[modality].view(_SMALL[modality], None, None)
                continue
            named = address.input in text_names(recipe.data)
            text = address.input if named else MAIN_VIEW
            views[f"text@{text}"] = TextView(_lengths, text)
    return views


def _lengths(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([len(text) for text in texts])


def _write(output: Path, broken: Sequence[Skipped | Lost]) -> None:
    try:
        with output.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(("sample", "reason"))
            writer.writerows((each.name, each.reason) for each in broken)
    except OSError as error:
        raise UserError(
            f"-o {output} cannot be written: {error.strerror}. Name another file."
        ) from None
