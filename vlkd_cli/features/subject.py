"""What is encoded and evaluated, and with what means."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vlkd_cli.features.store import FeatureStore
from vlkd_cli.recipe.types import MODALITY_NAMES, ModalityName, Precision

if TYPE_CHECKING:
    from vlkd_cli.checkpoint import Source
    from vlkd_cli.data.readers.reader import Reader
    from vlkd_cli.towers.tower import Tower


@dataclass
class OpenTables:
    """What suites that are evaluated together share: feature tables that are open or in memory, by
    what determines them."""

    stores: dict[str, FeatureStore] = field(default_factory=dict)
    projected: dict[str, Tensor] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    """What `Tower.digest` gave, by `id`: towers do not change while their tables are open."""
    weights: dict[int, str] = field(default_factory=dict)
    """Digests of towers with their heads, by `id`."""
    datasets: dict[str, Any] = field(default_factory=dict)
    """Data sets that are open, by the keys that open them; models share them too."""
    fingerprints: WeakKeyDictionary[Reader, str] = field(default_factory=WeakKeyDictionary)
    """Of the images of readers; models share them too."""


@dataclass
class Subject:
    """What is evaluated, and with what means.

    Evaluation is split over the ranks of the process group that is up, if one is; every rank gets
    the same results back.
    """

    image: Tower | None
    text: Tower | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "fp32"
    batch_size: int = 64
    workers: int = 0
    cache: Path | None = None
    """Folder where features are cached between suites and runs; None: in memory, for this
    evaluation only."""
    output: Path | None = None
    """Folder for files that a suite writes (predictions, tables); None: nothing is written."""
    data_root: Path | None = None
    """`--data ROOT`: where data sets are looked up by name."""
    model: Source | None = None
    """Which checkpoint the towers come from; None: they are as their builders gave them."""
    towers: dict[str, Tower] = field(default_factory=dict)
    """All towers by name, those that follow another among them; an entry's `tower:` chooses one."""
    starts: dict[str, Tower] = field(default_factory=dict)
    """Towers as they were before training, by name, for WiSE-FT."""
    tables: OpenTables = field(default_factory=OpenTables, repr=False, compare=False)
    """What suites share; `run_suites` gives its suites tables of their own."""
    mesh: Tower | None = None

    def source_facts(self) -> dict[str, object]:
        """Run, checkpoint, step and averaging of the weights; nulls where nothing was trained."""
        if self.model is None:
            return dict.fromkeys(("run", "checkpoint", "step", "averaged"))
        return {
            "run": self.model.run,
            "checkpoint": self.model.file or None,
            "step": self.model.step,
            "averaged": self.model.averaged,
        }

    def tower(self, modality: ModalityName) -> Tower | None:
        """The tower of a modality that is evaluated."""
        tower: Tower | None = getattr(self, modality)
        return tower

    def with_tower(self, tower: Tower) -> Subject:
        """The subject with its tower of this modality replaced."""
        chosen = replace(self)
        setattr(chosen, tower.modality, tower)
        return chosen

    def at_width(self, width: int | None) -> Subject:
        """The subject with every tower cut to its first values; None: as it is."""
        if width is None:
            return self
        cut: dict[int, Tower] = {}

        def narrow(tower: Tower | None) -> Tower | None:
            if tower is not None and id(tower) not in cut:
                cut[id(tower)] = tower.at_width(width)
            return None if tower is None else cut[id(tower)]

        chosen = replace(self)
        for name in MODALITY_NAMES:
            setattr(chosen, name, narrow(self.tower(name)))
        return chosen

    def tower_facts(self, modality: ModalityName) -> dict[str, str]:
        """`facts_of` the tower of a modality."""
        tower = self.tower(modality)
        assert tower is not None
        return self.facts_of(tower)

    def facts_of(self, tower: Tower) -> dict[str, str]:
        """Name, digest and, of a tower out of another run, checkpoint of a tower that is
        evaluated."""
        # A follower is a copy that has the name of the tower it follows.
        name = next((key for key, own in self.towers.items() if own is tower), tower.name)
        facts = {"name": name, "weights": self.weights_digest(tower)}
        source = getattr(tower, "source", None)
        return facts if source is None else {**facts, "source": str(source)}

    def image_fingerprint(self, reader: Reader) -> str:
        """`Reader.image_fingerprint`, for which files are read once."""
        known = self.tables.fingerprints
        if reader not in known:
            known[reader] = reader.image_fingerprint()
        return known[reader]

    def digest(self, tower: Tower) -> str:
        """`Tower.digest`, computed once."""
        if id(tower) not in self.tables.digests:
            self.tables.digests[id(tower)] = tower.digest()
        return self.tables.digests[id(tower)]

    def weights_digest(self, tower: Tower) -> str:
        """sha256 over all that determines what a tower gives, heads included."""
        if id(tower) not in self.tables.weights:
            digest = hashlib.sha256(self.digest(tower).encode())
            if getattr(tower, "cut", None) is not None:
                digest.update(f"\0first {tower.cut}".encode())
            if (output := getattr(tower, "passed_on", "head")) != "head":
                digest.update(f"\0output {output}".encode())
            for name, tensor in tower.state_dict().items():
                if name.startswith(("head.", "heads.")):
                    digest.update(f"\0{name}\0".encode())
                    digest.update(
                        tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
                    )
            self.tables.weights[id(tower)] = digest.hexdigest()
        return self.tables.weights[id(tower)]
