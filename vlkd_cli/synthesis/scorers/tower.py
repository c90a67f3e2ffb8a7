"""A tower as a scorer: the similarity of its vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlkd_cli.evaluation.run import with_tower
from vlkd_cli.recipe.modality import is_named
from vlkd_cli.synthesis.scorers.scorer import Pairs, Scorer
from vlkd_cli.synthesis.sources import Sources


class TowerScorer(Scorer):
    """The similarity of a tower's vectors of query and passage, by `synthesis.similarity`.

    Args:
        tower: a text tower of the recipe; by default its only one.
    """

    def __init__(self, *, tower: str | None = None) -> None:
        self.tower = tower

    def open(self, sources: Sources) -> None:
        self._sources = sources
        towers = sources.subject.towers
        texts = [name for name, own in towers.items() if is_named(own.modality)]
        self._name = self.tower or texts[0]
        self._vectors = sources.comparable(sources.query_vectors(self._name)).double()
        self._features = sources.passage_features(self._name).table()

    def digest(self) -> str:
        subject = with_tower(self._sources.subject, self._name)
        return subject.weights_digest(subject.towers[self._name])

    def scores(self, pairs: Sequence[Pairs]) -> list[NDArray[np.float64]]:
        found = []
        for query, passages in pairs:
            features = torch.from_numpy(np.array(self._features[passages]))
            rows = self._sources.projected(self._name, features).double()
            found.append((rows * self._vectors[query]).sum(1).numpy())
        return found
