"""What every evaluation suite is."""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from vlkd_cli.evaluation.results import DataIdentity, Result, cell_key
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import ModalityName

if TYPE_CHECKING:
    from vlkd_cli.evaluation.shown import Arrays, Shown
    from vlkd_cli.towers.tower import Tower


class Measures(NamedTuple):
    """Names of what a suite returns."""

    datasets: Sequence[str]
    """Empty where they are not known before it ran."""
    metrics: Sequence[str]


class Suite:
    """Base of the suites: keyword-only constructor arguments are the recipe keys of an `evals:`
    entry.

    A perfect encoder scores 1 and a random one scores chance; a contract test brackets every suite
    so.
    """

    modalities: ClassVar[frozenset[ModalityName]]
    """The modalities whose towers it needs."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What its readers must offer: words out of image, text, label."""
    data_keys: ClassVar[frozenset[str]] = frozenset({"data", "train_data", "val_data"})
    """Keys that name sources of data; results name them as `data`, with digests of the data
    itself."""
    report_keys: ClassVar[frozenset[str]] = frozenset({"items"})
    """Keys that change what is written, and no number."""
    version: ClassVar[int] = 1
    """Raised when the suite gives other numbers for the same keys and data."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that its numbers depend on, in addition to NumPy and PyTorch."""

    uses: frozenset[ModalityName]
    """The towers that its numbers depend on: those it needs, and the text tower where a key asks
    for it."""
    keys: dict[str, Any]
    """Every key with its value, given or default."""

    def __new__(cls, **keys: object) -> Self:
        suite = super().__new__(cls)
        declared = inspect.signature(cls.__init__).parameters.values()
        defaults = {p.name: p.default for p in declared if p.default is not p.empty}
        suite.keys, suite.uses = {**defaults, **keys}, cls.modalities
        return suite

    def open(self, subject: Subject) -> Any:
        """What `run` reads first: data, opened and checked. Called once before a training starts,
        so that mistakes are reported then and not after the first epoch.

        Raises:
            DataError: files are missing or damaged, or do not fit.
        """
        return None

    def measures(self, opened: Any) -> Measures | None:
        """Names of what `run` returns, so that `train.best` can be checked; None: not known before
        it ran."""
        return None

    def identity(self, opened: Any) -> DataIdentity | None:
        """What results record about the data that `open` returned; None: not known before it
        ran."""
        known = getattr(opened, "identity", None)
        found: DataIdentity | None = known() if callable(known) else None
        return found

    def cell_key(self, subject: Subject, hashes: Mapping[str, str]) -> str:
        """The key of its results on data with these hashes."""
        return cell_key(
            suite=type(self).__module__.rpartition(".")[2],
            version=self.version,
            keys=self._own_keys(),
            hashes=hashes,
            weights={
                modality: subject.tower_facts(modality)["weights"] for modality in sorted(self.uses)
            },
            precision=subject.precision,
        )

    def run(self, subject: Subject) -> list[Result]:
        """Evaluate; the same list on every rank.

        Raises:
            DataError: files are missing or damaged; the message names them and what to do.
        """
        raise NotImplementedError

    def result(
        self,
        subject: Subject,
        data: DataIdentity,
        *,
        protocol: str,
        metrics: dict[str, float],
        primary_metric: str,
        chance: dict[str, float],
        num_items: int,
        num_skipped: int = 0,
        settings: Mapping[str, object] | None = None,
        details: Mapping[str, object] | None = None,
        items: Arrays | None = None,
        shown: Shown | None = None,
        towers: Mapping[str, Tower] | None = None,
    ) -> Result:
        """A result with everything that defines what was measured: towers and checkpoint, data,
        precision, versions, and every key of the suite.

        Args:
            settings: what else could change a number, or what a key that was left out came to.
            towers: by role, what the numbers depend on; by default those that the suite uses, by
                modality.
        """
        name = type(self).__module__.rpartition(".")[2]
        return Result(
            name=name,
            suite=name,
            dataset=data.dataset,
            split=data.split,
            protocol=protocol,
            metrics=metrics,
            primary_metric=primary_metric,
            chance=chance,
            num_items=num_items,
            num_skipped=num_skipped,
            num_classes=data.num_classes,
            model=subject.source_facts(),
            towers=(
                {modality: subject.tower_facts(modality) for modality in sorted(self.uses)}
                if towers is None
                else {role: subject.facts_of(tower) for role, tower in towers.items()}
            ),
            precision=subject.precision,
            hashes=data.hashes,
            data={key: self.keys[key] for key in sorted(self.data_keys & self.keys.keys())},
            settings={**self._own_keys(), **(settings or {})},
            libraries=library_versions("numpy", "torch", *self.libraries),
            details=dict(details or {}),
            key=self.cell_key(subject, data.hashes),
            device=str(subject.device),
            items=items,
            shown=shown,
        )

    def _own_keys(self) -> dict[str, object]:
        """The keys that can change a number."""
        return {
            key: value
            for key, value in self.keys.items()
            if key not in self.data_keys | self.report_keys
        }


def library_versions(*libraries: str) -> dict[str, str]:
    """Python and the installed versions of these distributions."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in libraries
    }
