"""The cells of an evaluation table: which model is measured how on which data, and which cells were
measured before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.engine.evaluate import subject_to_evaluate
from vlkd_cli.engine.launching.targets import Target
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.evaluation.datasets.collections import Entry
from vlkd_cli.evaluation.datasets.dataset import open_dataset
from vlkd_cli.evaluation.run import build_suite, chosen_by
from vlkd_cli.evaluation.suite import Suite
from vlkd_cli.features.subject import OpenTables, Subject
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.reports.records import FAILED
from vlkd_cli.reports.table import Cell

HELD_BYTES = 4 * 2**30
"""Models of this size together stay in memory between planning and computing."""


@dataclass
class Model:
    """A model of the table while it is planned and computed."""

    number: int
    target: Target
    data_root: Path | None
    shared: OpenTables = field(default_factory=OpenTables)
    """Open data sets and their fingerprints, the same for all models."""
    _subject: Subject | None = None
    _error: Exception | None = None

    def subject(self) -> Subject:
        """Its towers on the CPU, loaded once and again only after `drop`."""
        if self._error is not None:
            raise self._error
        if self._subject is None:
            try:
                self._subject = self._load()
            # Every cell of the model fails with it.
            except Exception as error:
                self._error = error
                raise
        return self._subject

    def _load(self) -> Subject:
        target = self.target
        subject = subject_to_evaluate(
            target.recipe,
            target.folder.create().path,
            target.checkpoint,
            torch.device("cpu"),
            exported=target.exported,
            data_root=self.data_root,
        )
        subject.tables.datasets = self.shared.datasets
        subject.tables.fingerprints = self.shared.fingerprints
        return subject

    def drop(self) -> None:
        """Free its memory."""
        self._subject = None

    @property
    def num_bytes(self) -> int:
        """Of its weights, where they are loaded."""
        towers = {} if self._subject is None else self._subject.towers
        tensors = [tensor for tower in towers.values() for tensor in tower.state_dict().values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass
class Plan:
    """Every cell in the order of the table: models, their data, their suites."""

    cells: list[Cell]

    def of(self, model: int, entry: int) -> list[Cell]:
        """The cells of one unit: a model on a data set."""
        return [cell for cell in self.cells if (cell.model, cell.entry) == (model, entry)]


def make_plan(models: Sequence[Model], entries: Sequence[Entry], specs: Sequence[EvalSpec]) -> Plan:
    """Look at every model and data set; computes nothing but digests.

    A model that cannot be loaded and data that cannot be opened have cells without a key, which
    fail when they are computed. Where a model lacks a tower of a suite, or a suite does not take a
    data set, there is no cell.

    Raises:
        UserError: a data set that the user named is taken by none of the suites.
    """
    cells: list[Cell] = []
    held = 0
    for model in models:
        cells += _cells_of(model, entries, specs)
        held += model.num_bytes
        if held > HELD_BYTES:
            model.drop()
    _refuse_untaken(cells, entries, specs)
    return Plan(cells)


def data_of(spec: EvalSpec, entry: Entry) -> EvalSpec:
    """The suite on a data set."""
    keys = {**entry.keys, "name": entry.name}
    return spec.model_copy(update={"data": keys})


def _cells_of(model: Model, entries: Sequence[Entry], specs: Sequence[EvalSpec]) -> Iterator[Cell]:
    try:
        subject = model.subject()
    # Whatever it is, it comes again when the cells are computed, and is written down there.
    except Exception:
        subject = None
    for position, entry in enumerate(entries):
        for number, spec in enumerate(specs):
            key = "" if subject is None else _key(subject, entry, spec)
            if key is None:
                continue
            folder = model.target.folder.results if subject is None else subject.output
            assert folder is not None
            yield Cell(
                model=model.number,
                target=model.target.label,
                entry=position,
                dataset=entry.name,
                spec=number,
                suite=spec.title,
                key=key,
                folder=str(folder),
                failure=str(folder / _failure(model.target, entry, spec)),
            )


def _key(subject: Subject, entry: Entry, spec: EvalSpec) -> str | None:
    """The cell's key; empty where data cannot be opened, None where there is no cell."""
    chosen = chosen_by(spec, subject)
    needed = attributes_of("suite", spec.suite).get("modalities", frozenset())
    if any(chosen.tower(modality) is None for modality in needed):
        return None
    try:
        suite = build_suite(data_of(spec, entry), chosen)
    except RecipeError as error:
        if not entry.origin:
            raise
        raise RecipeError(f"--datasets {entry.origin}: {error}") from error
    try:
        if not _takes(suite, open_dataset(chosen, data_of(spec, entry).keys["data"]).reader, entry):
            return None
        identity = suite.identity(suite.open(chosen))
    except Exception:  # as above
        return ""
    if identity is None:
        hint = " Name the languages as data sets." if spec.keys.get("languages") else ""
        raise UserError(
            f"--suite {spec.suite}: gives several results of data '{entry.name}', or cannot name"
            f" its result before it runs; a cell holds one.{hint} Run it without --table."
        )
    return suite.cell_key(chosen, identity.hashes)


def _takes(suite: Suite, reader: Reader, entry: Entry) -> bool:
    """Whether the suite can measure such data: labels for what needs labels, wrong captions for
    what chooses among captions, captions for all others. The prompts of a classification set are
    not captions, and sets made for a choice are measured by others only if the user asks for
    it."""
    if "choices" in suite.needs:
        return "choices" in reader.offers
    if "label" in suite.needs:
        return reader.classes is not None or (len(reader) > 0 and reader.label(0) >= 0)
    is_own = "reader" in entry.keys or "readers" in entry.keys
    has_captions = reader.classes is None and "choices" not in reader.offers
    return reader.has_captions and (is_own or has_captions)


def _failure(target: Target, entry: Entry, spec: EvalSpec) -> str:
    """The name of the file with the reason why a cell failed; known even if nothing could be
    opened."""
    what = [target.label, str(target.checkpoint), entry.keys, spec.suite, spec.keys, spec.tower]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
    name = "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in entry.name)
    return f"{spec.title}-{name}-{digest[:12]}{FAILED}"


def _refuse_untaken(
    cells: Sequence[Cell], entries: Sequence[Entry], specs: Sequence[EvalSpec]
) -> None:
    taken = {cell.entry for cell in cells}
    for position, entry in enumerate(entries):
        if entry.is_listed and position not in taken:
            suites = ", ".join(spec.title for spec in specs)
            raise UserError(
                f"--datasets {entry.name}: none of the suites ({suites}) can measure it with these"
                " models: they need labels, captions, or a tower that is missing. Leave it out."
            )
    if not cells:
        raise UserError(
            "there is nothing to measure: no suite takes any of these data sets with these models."
        )
