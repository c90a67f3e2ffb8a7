"""Evaluate one data set of ELEVATER with one seed, and write its predictions."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

import vlkd_cli
from vlkd_cli import console
from vlkd_cli.data.readers.elevater import Elevater
from vlkd_cli.data.readers.elevater_sets import official_sets
from vlkd_cli.distributed.collectives import broadcast_object
from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.elevater.learners import FineTuneLearner, ProbeLearner, Task
from vlkd_cli.elevater.metrics import METRICS
from vlkd_cli.elevater.predictions import (
    Hashes,
    Header,
    Provenance,
    file_name,
    read_provenance,
    write_predictions,
)
from vlkd_cli.elevater.protocol import Choice, draw_sample, fit
from vlkd_cli.elevater.sweep import Trial
from vlkd_cli.elevater.templates import prompts_of
from vlkd_cli.errors import DataError, RecipeError, UserError
from vlkd_cli.features.encode import (
    class_features,
    embed_images,
    normalize,
    require_equal_widths,
)
from vlkd_cli.features.subject import Subject

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

Mode = Literal["zero_shot", "linear_probe", "fine_tune"]


@dataclass(frozen=True)
class Plan:
    """What is done with every data set; see the suite's keys."""

    mode: Mode
    shots: int | None
    tune: bool
    trial: Trial
    protocol: Choice
    start: Literal["text", "random"]
    features: Literal["head", "backbone"]
    templates: str | list[str] | None
    sweep_epochs: int
    epochs: int
    model_name: str | None

    @property
    def n_shot(self) -> int:
        """As a prediction file writes it: 0 zero-shot, -1 all; one shot samples two images."""
        if self.mode == "zero_shot":
            return 0
        return -1 if self.shots is None else max(self.shots, 2)

    @property
    def folder(self) -> str:
        """Where its prediction files go, below `elevater/`."""
        if self.mode == "zero_shot":
            return self.mode
        amount = "full" if self.shots is None else str(self.shots)
        return f"{self.mode}_{amount}" + (
            "_best_on_test" if self.protocol == "elevater_paper" else ""
        )


@dataclass(frozen=True)
class Scored:
    """One data set and seed."""

    seed: int
    value: float
    details: dict[str, object]
    reused: bool = False
    """Taken from a prediction file that was there."""


def zero_shot_probabilities(images: Tensor, classes: Tensor) -> Tensor:
    """softmax(100 * cosine), `[N, C]`, of image features `[N, D]` and unit class weights `[C, D]`.

    The towers' own temperature plays no part. Source: Elevater_Toolkit_IC @00d0af7,
        evaluation/clip_zeroshot_evaluator.py.
    """
    return (100 * normalize(images) @ classes.T).softmax(-1)


class SetRun:
    """One data set, opened, with the towers that look at it.

    Raises:
        DataError: the data is missing or damaged.
        RecipeError: the towers do not fit together.
    """

    def __init__(self, subject: Subject, root: Path, dataset: str, plan: Plan) -> None:
        self.plan = plan
        self.test = Elevater(root=str(root), dataset=dataset, split="test")
        self.train = (
            None
            if plan.mode == "zero_shot"
            else Elevater(root=str(root), dataset=dataset, split="train")
        )
        self.facts = self.test.facts
        self.subject = _without_crop(subject) if self.facts.squash else subject
        assert subject.image is not None
        self.weights = (
            class_features(subject, prompts_of(self.test, plan.templates))
            if self._needs_text(subject)
            else None
        )
        width = subject.image.width if plan.features == "head" else subject.image.feature_width
        if self.weights is not None:
            require_equal_widths(width, self.weights.shape[1], "elevater")
        self._warn_of_another_size()

    def _needs_text(self, subject: Subject) -> bool:
        needed = self.plan.mode == "zero_shot" or self.plan.start == "text"
        if needed and subject.text is None:
            instead = "" if self.plan.mode == "zero_shot" else " Set `start: random` to do without."
            raise RecipeError(
                "suite 'elevater' needs a text tower for the classes' prompts, but the recipe has"
                f" none.{instead}"
            )
        return needed

    def _warn_of_another_size(self) -> None:
        official = official_sets().get(self.facts.name)
        expected = None if official is None else official.splits["test"].num_images
        if expected is not None and expected != len(self.test):
            console.warn(
                f"'{self.facts.name}' has {len(self.test)} test images here and {expected}"
                " officially: its score cannot be compared, and a submission would reject it."
            )

    def evaluate(self, seed: int) -> Scored:
        """Predict the test rows and score them; where the same has been done before, read it."""
        key = self._key()
        path = None
        if self.subject.output is not None:
            path = (
                self.subject.output
                / "elevater"
                / self.plan.folder
                / file_name(self.facts.name, self.plan.n_shot, seed)
            )
            # Rank 0 writes and rank 0 looks: the others may be on machines that do not see its
            # files.
            before = broadcast_object(_done_before(path) if is_main() else None)
            if before is not None and before.get("key") == key and before.get("seed") == seed:
                return Scored(seed, before["score"], before["details"], reused=True)
        try:
            probabilities, details, trainable = self._predict(seed)
            value = METRICS[self.facts.metric](probabilities.numpy(), self.test.targets())
        except UserError as error:
            kind = DataError if isinstance(error, DataError) else UserError
            raise kind(f"data set '{self.facts.name}': {error}") from error
        problem = None
        if path is not None and is_main():
            try:
                write_predictions(
                    path,
                    self._header(seed, trainable),
                    probabilities,
                    self._provenance(seed, key, value, details),
                )
            except UserError as error:
                problem = str(error)
        if (problem := broadcast_object(problem)) is not None:
            raise UserError(problem)
        return Scored(seed, value, details)

    def _predict(self, seed: int) -> tuple[Tensor, dict[str, object], int]:
        plan, subject = self.plan, self.subject
        if self.train is None:
            assert self.weights is not None
            return zero_shot_probabilities(embed_images(subject, self.test), self.weights), {}, 0
        labels = [self.train.labels(row) for row in range(len(self.train))]
        sample = draw_sample(labels, plan.shots, seed, self.facts.num_classes)
        task = Task(
            self.facts.metric,
            self.facts.num_classes,
            self.facts.multi_label,
            torch.from_numpy(self.train.targets())[sample],
            torch.from_numpy(self.test.targets()),
        )
        initial = self.weights if plan.start == "text" else None
        learner: ProbeLearner | FineTuneLearner
        if plan.mode == "linear_probe":
            own = embed_images(subject, self.train, point=plan.features, indices=sample)
            other = embed_images(subject, self.test, point=plan.features)
            learner = ProbeLearner(task, own, other, initial=initial, device=subject.device)
        else:
            learner = FineTuneLearner(
                task, subject, sample, self.train, self.test, point=plan.features, initial=initial
            )
        done = fit(
            learner,
            [labels[row] for row in sample],
            shots=plan.shots,
            tune=plan.tune,
            trial=plan.trial,
            protocol=plan.protocol,
            sweep_epochs=plan.sweep_epochs,
            epochs=plan.epochs,
            multi_label=self.facts.multi_label,
            seed=seed,
        )
        return done.outcome.probabilities, done.summary(), learner.num_trainable

    def _header(self, seed: int, trainable: int) -> Header:
        visual = _num_parameters(self.subject.image)
        backbone = visual + _num_parameters(self.subject.text)
        head = (
            0 if self.train is None else self.facts.num_classes * (self._width() + 1) + 1
        )  # the toolkit counts its logit scale
        name = self.plan.model_name or f"vlkd-{_weights_digest(self.subject)[:8]}"
        return Header(
            name,
            self.facts.name,
            trainable,
            backbone + head,
            visual,
            backbone,
            self.plan.n_shot,
            [seed],
        )

    def _width(self) -> int:
        assert self.subject.image is not None
        return (
            self.subject.image.width
            if self.plan.features == "head"
            else self.subject.image.feature_width
        )

    def _provenance(
        self, seed: int, key: str, value: float, details: dict[str, object]
    ) -> Provenance:
        return {
            "dataset": self.facts.name,
            "split": "test",
            "metric": self.facts.metric,
            "seed": seed,
            "score": value,
            "key": key,
            "weights": _weights_digest(self.subject),
            "settings": self._settings(),
            "details": details,
            **self.hashes(),
            "row_source": self.test.order_source,
            "class_names_confirmed": self.test.class_names_confirmed,
            "doubts": self._doubts(),
            "version": vlkd_cli.__version__,
            "labels": [list(self.test.labels(row)) for row in range(len(self.test))],
        }

    def hashes(self) -> Hashes:
        """Digests of row order, class order and files."""
        return {
            "row_order": self.test.row_order_digest(),
            "class_order": self.test.class_order_digest(),
            "files": self.test.fingerprint(),
        }

    def _doubts(self) -> list[str]:
        """What speaks against the official order, a sentence each."""
        official = official_sets().get(self.facts.name)
        index = self.facts.splits["test"].index if "test" in self.facts.splits else ""
        if (
            official is None
            or self.test.order_source != "index file"
            or index == official.splits["test"].index
        ):
            return []
        return [
            f"Its rows come from '{index}', and the official index is"
            f" '{official.splits['test'].index}'."
        ]

    def _settings(self) -> dict[str, object]:
        settings = dict(vars(self.plan))
        settings.pop("model_name")
        return {**settings, "trial": list(self.plan.trial), "precision": self.subject.precision}

    def _key(self) -> str:
        """Changes with whatever the predictions depend on."""
        parts = [
            json.dumps(self._settings(), sort_keys=True),
            *map(str, self.hashes().values()),
            _weights_digest(self.subject),
        ]
        parts += [repr(cast("Tower", self.subject.image).input), self.plan.model_name or ""]
        parts += [] if self.train is None else [self.train.fingerprint()]
        parts += [] if self.weights is None else [repr(prompts_of(self.test, self.plan.templates))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _done_before(path: Path) -> Provenance | None:
    """What is known of a prediction file that is there; nothing where its provenance cannot be
    read, so that it is made again."""
    try:
        return read_provenance(path) if path.is_file() else None
    except DataError:
        return None


def _without_crop(subject: Subject) -> Subject:
    """The subject with an image tower that sees whole images, squashed to its size: KITTI's cars
    are at the edges."""
    assert subject.image is not None
    tower = copy.copy(subject.image)  # shares weights and modules
    tower.input = subject.image.input._replace(resize="squash")
    return replace(subject, image=tower)


def _num_parameters(tower: Tower | None) -> int:
    return 0 if tower is None else tower.count_parameters()[0]


def _weights_digest(subject: Subject) -> str:
    """Of both towers with their heads."""
    towers = [tower for tower in (subject.image, subject.text) if tower is not None]
    both = "".join(subject.weights_digest(tower) for tower in towers)
    return hashlib.sha256(both.encode()).hexdigest()
