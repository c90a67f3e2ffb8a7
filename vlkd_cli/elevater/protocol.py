"""ELEVATER's way from labeled rows to predictions: sample, cut off a validation part, search,
train finally."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from vlkd_cli.elevater.sampler import Labels, few_shot, validation_split
from vlkd_cli.elevater.sweep import Search, Trial, search
from vlkd_cli.errors import DataError

Choice = Literal["elevater", "elevater_paper"]
SWEEP_ROWS_PER_CLASS = 10_000
"""The toolkit searches PatchCamelyon's full-shot settings on so many rows per class; here, any set
that has more."""


class Outcome(NamedTuple):
    """A final training."""

    probabilities: Tensor
    """`[N, C]` of the test rows."""
    epoch: int
    """Which epoch's they are, from 1."""
    curve: list[float]
    """Test metric after every epoch, where it was looked at."""


class Learner(Protocol):
    """What is trained on the sampled rows: heads on features, or a network on images. Rows are
    positions in the sample."""

    def curves(
        self, trials: Sequence[Trial], *, train: Sequence[int], valid: Sequence[int], epochs: int
    ) -> list[list[float]]:
        """For each trial the metric on `valid` after every epoch; a training that fails numerically
        gives values that are not finite."""

    def predict(
        self, trial: Trial, *, train: Sequence[int], epochs: int, best_on_test: bool
    ) -> Outcome:
        """Train and predict the test rows: after the last epoch, or after the (first) one that is
        best on them."""


class Fit(NamedTuple):
    """What came out for one data set and seed, and how."""

    outcome: Outcome
    trial: Trial
    search: Search | None
    num_train: int
    epoch_chosen_on: Literal["validation", "test"]

    def summary(self) -> dict[str, object]:
        """Plain values for a result."""
        return {
            "lr": self.trial.lr,
            "weight_decay": self.trial.weight_decay,
            "epoch": self.outcome.epoch,
            "epoch_chosen_on": self.epoch_chosen_on,
            "train_rows": self.num_train,
            "trainings_searched": 0 if self.search is None else self.search.num_trainings,
            "search_score": None if self.search is None else self.search.score,
        }


def draw_sample(labels: Labels, shots: int | None, seed: int, num_classes: int) -> list[int]:
    """Training rows: all, or `shots` per class. One shot samples two, since one of them is needed
    for validation."""
    return (
        list(range(len(labels)))
        if shots is None
        else few_shot(labels, max(shots, 2), seed, num_classes=num_classes)
    )


def fit(
    learner: Learner,
    labels: Labels,
    *,
    shots: int | None,
    tune: bool,
    trial: Trial,
    protocol: Choice,
    sweep_epochs: int = 10,
    epochs: int = 50,
    multi_label: bool = False,
    seed: int = 0,
) -> Fit:
    """Search on a validation part, then train on all rows of the sample.

    Args:
        labels: of the sample's rows.
        shots: per class, None for all.
        tune: search learning rate and weight decay; otherwise `trial` is taken.
        protocol: `elevater` stops the final training at the epoch that was best on the validation
            part with the chosen setting; `elevater_paper` takes the epoch that is best on the test
            rows, as the toolkit and its published numbers do.
        sweep_epochs: of each training of the search.
        epochs: of the final training, at most.

    Raises:
        DataError: there are too few rows.

    Source: Elevater_Toolkit_IC @00d0af7, commands/linear_probe.py and finetune.py. After a search
    on the first four fifths, the rows are put together again, except for one shot, where one row
    per class trains and one validates.
    """
    split = validation_split(labels, multi_label=multi_label)
    if len(split.train) < 2 or not split.valid:
        raise DataError(
            f"{len(labels)} training rows leave {len(split.train)} to train and {len(split.valid)}"
            " to validate; more are needed."
        )
    final = split.train if shots == 1 else list(range(len(labels)))
    found: Search | None = None
    if tune:
        train, valid = _sweep_rows(labels, split.train, split.valid, shots, multi_label, seed)

        def best_scores(trials: Sequence[Trial]) -> list[float]:
            curves = learner.curves(trials, train=train, valid=valid, epochs=sweep_epochs)
            return [max(curve, default=0.0) for curve in curves]

        found = search(best_scores)
        trial = found.best
    if protocol == "elevater_paper":
        outcome = learner.predict(trial, train=final, epochs=epochs, best_on_test=True)
        return Fit(outcome, trial, found, len(final), "test")
    (curve,) = learner.curves([trial], train=split.train, valid=split.valid, epochs=epochs)
    best_epoch = max(range(len(curve)), key=curve.__getitem__) + 1
    outcome = learner.predict(trial, train=final, epochs=best_epoch, best_on_test=False)
    return Fit(outcome, trial, found, len(final), "validation")


def _sweep_rows(
    labels: Labels,
    train: list[int],
    valid: list[int],
    shots: int | None,
    multi_label: bool,
    seed: int,
) -> tuple[list[int], list[int]]:
    sampled = few_shot(labels, SWEEP_ROWS_PER_CLASS, seed) if shots is None else []
    if not sampled or len(sampled) == len(labels):
        return train, valid
    split = validation_split([labels[row] for row in sampled], multi_label=multi_label)
    return [sampled[row] for row in split.train], [sampled[row] for row in split.valid]
