"""Collections whose vectors and scores are known: towers that look texts up, a scorer that reads a
table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.fakes import FakeTower
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis.run import synthesize
from vlkd_cli.synthesis.scorers.scorer import Pairs, Scorer
from vlkd_cli.synthesis.sources import Sources

BY_TABLE = "tests.support.passages:ScoredByTable"


class ScoredByTable(Scorer):
    """Scores that stand in a table `[Q, N]`; remembers which pairs it was asked for."""

    table: ClassVar[NDArray[np.float64]] = np.zeros((0, 0))
    asked: ClassVar[list[tuple[int, int]]] = []

    def open(self, sources: Sources) -> None:
        type(self).asked = []

    def digest(self) -> str:
        return str(self.table.tolist())

    def scores(self, pairs: Sequence[Pairs]) -> list[NDArray[np.float64]]:
        self.asked.extend((query, place) for query, own in pairs for place in own.tolist())
        return [self.table[query, own].astype(np.float64) for query, own in pairs]


def write_numbered(folder: Path, *, queries: int, passages: int) -> Path:
    """A folder in BEIR's format in which query N is called and reads `qN`, a passage `pN`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, letter, count in (("queries", "q", queries), ("corpus", "p", passages)):
        records = [{"_id": f"{letter}{n}", "text": f"{letter}{n}"} for n in range(count)]
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def tower_of_rows(name: str, queries: np.ndarray, passages: np.ndarray) -> FakeTower:
    """A text tower that gives row N of a table for `qN`, and of the other for `pN`."""
    tables = {"q": torch.tensor(queries).float(), "p": torch.tensor(passages).float()}

    def feature(text: str) -> Tensor:
        return tables[text[0]][int(text[1:])] if text else torch.zeros(queries.shape[1])

    return FakeTower("text", feature, queries.shape[1], name=name)


def subject_of_rows(
    queries: np.ndarray, miners: Sequence[np.ndarray], cache: Path | None = None
) -> Subject:
    """Towers text_0, text_1, ..., one for each table of passages."""
    named = [tower_of_rows(f"text_{n}", queries, table) for n, table in enumerate(miners)]
    towers: Any = {tower.name: tower for tower in named}
    return Subject(None, towers["text_0"], batch_size=8, cache=cache, towers=towers)


def written_relations(
    folder: Path, queries: np.ndarray, miners: Sequence[np.ndarray], **keys: Any
) -> tuple[list[list[str]], dict[str, Any]]:
    """The cells of the file of relations, and its page, for towers that compare by dot product."""
    root = write_numbered(folder / "corpus", queries=len(queries), passages=len(miners[0]))
    spec = SynthesisSpec.model_validate(
        {
            "data": {"reader": "passages", "path": str(root)},
            "miners": [f"text_{n}" for n in range(len(miners))],
            "scorers": [{"name": BY_TABLE}],
            "similarity": "dot",
            **keys,
        }
    )
    found = synthesize(spec, subject_of_rows(queries, miners, folder / "cache"), folder / "out")
    lines = found.relations.read_text().splitlines()
    return [line.split("\t") for line in lines[1:]], found.page
