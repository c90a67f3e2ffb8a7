"""Logistic regression on frozen image features, by the protocols of the field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed.collectives import gather_objects
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.dataset import (
    LabeledPair,
    labeled_pair,
    labels_of,
    open_dataset,
)
from vlkd_cli.evaluation.datasets.prompts import prompts_of
from vlkd_cli.evaluation.metrics.classification import mean_per_class, top_k_accuracy, top_k_hits
from vlkd_cli.evaluation.metrics.groups import GROUP_METRICS, check_min_group, figures_by_group
from vlkd_cli.evaluation.probes.linear import Linear, adamw_probe, logistic_regression, sgd_probe
from vlkd_cli.evaluation.probes.peak_search import search_peak
from vlkd_cli.evaluation.probes.probes import HeadSetting, train_heads
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import class_features, embed_images, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource

Protocol = Literal["clip", "sgd", "adamw", "elevater", "elevater_paper"]
INVERSE_REGULARIZERS = np.logspace(6, -6, 97)
"""C of scikit-learn: the inverse of CLIP's lambda, which runs from 1e-6 to 1e6."""
WEIGHT_DECAYS = np.logspace(-6, 2, 97)


class Features(NamedTuple):
    """Features and labels of what is learned from, what settings are chosen on, and what is
    judged."""

    train: Tensor
    train_labels: Tensor
    valid: Tensor
    valid_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def merged(self) -> tuple[Tensor, Tensor]:
        """What is learned from once the settings are chosen."""
        return torch.cat([self.train, self.valid]), torch.cat(
            [self.train_labels, self.valid_labels]
        )


class Outcome(NamedTuple):
    """Class scores `[N, C]` of the test images, further metrics, and the settings that were
    chosen."""

    scores: Tensor
    metrics: dict[str, float]
    chosen: dict[str, object]


class LinearProbe(Suite):
    """Train a linear classifier on the features of one part of the data and judge it on another.

    `clip`: scikit-learn's L-BFGS; the regularizer by a coarse-to-fine search on validation images,
    then a fit on both parts.
    `sgd`: SGD with momentum and a cosine over 100 epochs (ITRA with lr 0.004; ProtoCLIP has lr 0.1
    and weight_decay 1e-6).
    `adamw`: minibatch AdamW, weight decay by the same search (CLIP_benchmark).
    `elevater`: batch norm and SGD, learning rate and weight decay by ELEVATER's search, then 50
    epochs on both parts, last epoch.
    `elevater_paper`: the same with the epoch that is best ON TEST, as the published numbers have
    it: for comparison only.

    Args:
        data: labeled images that are judged.
        train_data: labeled images to learn from; by default the same data with `split: train`.
        val_data: labeled images to choose settings on; by default the first `val_share` of each
            class of the training images.
        protocol: see above.
        features: features before the head (`backbone`), or after it (`head`).
        normalize: L2-normalize the features.
        tune: search for the regularizer; else `C`, or `lr` and `weight_decay`, are taken as given.
        val_share: fraction of each class's training images that settings are chosen on.
        C: inverse regularizer of `clip` where it is not tuned.
        lr: learning rate; by default the protocol's (0.004 for sgd; 0.1 for adamw and for elevater
            without tuning).
        weight_decay: where it is not tuned; by default 0 (1e-6 for elevater).
        epochs: by default the protocol's (100 for sgd, 20 for adamw, 10 in the search and 50 in the
            final run for elevater).
        text_start: elevater: start from the classes' text features, which needs `features: head`
            and a text tower.
        templates: prompt templates for `text_start`, as in zero_shot.
        seed: of the order of batches, where the protocol trains in batches.
        min_group: images that a group needs to be the worst one, by default 10, of data whose
            images belong to groups (`group:` of reader csv).

    Source: Radford et al. 2021, appendix A.3; ITRA and ProtoCLIP linear_eval.py; CLIP_benchmark
        linear_probe.py; Elevater_Toolkit_IC.
    """

    modalities = frozenset({"image"})
    needs = frozenset({"image", "label"})
    libraries = ("scikit-learn",)

    def __init__(
        self,
        *,
        data: DataSource = None,
        train_data: DataSource = None,
        val_data: DataSource = None,
        protocol: Protocol = "clip",
        features: Literal["backbone", "head"] = "backbone",
        normalize: bool = False,
        tune: bool = True,
        val_share: float = 0.2,
        C: float = 3.16,
        lr: float | None = None,
        weight_decay: float | None = None,
        epochs: int | None = None,
        text_start: bool = False,
        templates: str | list[str] | None = None,
        seed: int = 0,
        min_group: int | None = None,
    ) -> None:
        self.data, self.train_data, self.val_data = data, train_data, val_data
        self.min_group = min_group
        check_min_group("linear_probe", min_group)
        self.protocol, self.tune, self.val_share = protocol, tune, val_share
        self.features, self.normalize = features, normalize
        self.C, self.lr, self.weight_decay, self.epochs, self.seed = (
            C,
            lr,
            weight_decay,
            epochs,
            seed,
        )
        self.text_start, self.templates = text_start, templates
        if text_start:
            self.uses = frozenset({"image", "text"})
        if not 0 < val_share < 1:
            raise RecipeError("suite 'linear_probe': val_share must be between 0 and 1.")
        if text_start and (features == "backbone" or not protocol.startswith("elevater")):
            raise RecipeError(
                "suite 'linear_probe': text_start needs `protocol: elevater` and `features: head`."
            )

    def open(self, subject: Subject) -> LabeledPair:
        pair = labeled_pair(subject, self.data, self.train_data)
        check_min_group("linear_probe", self.min_group, pair.test.reader)
        if self.val_data is not None:
            open_dataset(subject, self.val_data)
        return pair

    def measures(self, opened: LabeledPair) -> Measures:
        best = ["best_epoch_on_test_top1"] if self.protocol == "sgd" else []
        names = ["top1", "top5", "mean_per_class", *best, *GROUP_METRICS]
        return Measures([opened.test.name], names)

    def run(self, subject: Subject) -> list[Result]:
        pair = self.open(subject)
        features = self._features(subject, pair)
        num_classes = len(pair.classes)
        if self.protocol == "clip":
            outcome = self._clip(features, num_classes)
        elif self.protocol == "sgd":
            outcome = self._sgd(features, num_classes)
        elif self.protocol == "adamw":
            outcome = self._adamw(features, num_classes)
        else:
            outcome = self._elevater(features, num_classes, self._start(subject, pair))
        metrics, chance = accuracies(outcome.scores, features.test_labels, num_classes)
        hits = top_k_hits(outcome.scores, features.test_labels, 1).cpu().numpy()
        by_group, details = figures_by_group(pair.test.reader, hits, self.min_group)
        return [
            self.result(
                subject,
                pair.identity(),
                protocol=self.protocol,
                metrics=metrics | outcome.metrics | by_group,
                primary_metric="top1",
                chance=chance | dict.fromkeys(outcome.metrics, 1 / num_classes),
                num_items=len(features.test),
                details=details,
                settings={
                    "train_split": pair.train.split,
                    "train_images": len(features.train),
                    "val_images": len(features.valid),
                    "epoch_chosen_on": (
                        "test" if self.protocol == "elevater_paper" else "none (last epoch)"
                    ),
                    **outcome.chosen,
                },
            )
        ]

    def _features(self, subject: Subject, pair: LabeledPair) -> Features:
        def embed(reader: Reader) -> Tensor:
            features = embed_images(subject, reader, point=self.features)
            return normalize(features) if self.normalize else features

        train, labels = embed(pair.train.reader), pair.train_labels
        test = embed(pair.test.reader), pair.test_labels
        if self.val_data is not None:
            valid = open_dataset(subject, self.val_data)
            return Features(
                train, labels, embed(valid.reader), labels_of(valid.reader, pair.classes), *test
            )
        if not self.tune:
            return Features(train, labels, train[:0], labels[:0], *test)
        held = first_of_each_class(labels, self.val_share)
        if not bool(held.any()):
            raise DataError(
                f"data '{pair.train.name}' ({pair.train.split}) has one image per class and none to"
                " spare to choose settings on. Give `val_data:`, or the settings with `tune:"
                " false`."
            )
        return Features(train[~held], labels[~held], train[held], labels[held], *test)

    def _clip(self, features: Features, num_classes: int) -> Outcome:
        C, tried = self.C, 0
        if self.tune:

            def score(position: int) -> float:
                fitted = logistic_regression(
                    features.train, features.train_labels, C=float(INVERSE_REGULARIZERS[position])
                )
                return float(fitted.score(features.valid.numpy(), features.valid_labels.numpy()))

            peak = search_peak(
                lambda positions: deal([(score, position) for position in positions])
            )
            C, tried = float(INVERSE_REGULARIZERS[peak.position]), len(peak.visited)
        fitted = logistic_regression(*features.merged, C=C)
        scores = torch.full((len(features.test), num_classes), -torch.inf, dtype=torch.float64)
        decision = torch.from_numpy(
            np.asarray(fitted.decision_function(features.test.numpy()), dtype=np.float64)
        )
        # scikit-learn gives one column for two classes.
        scores[:, torch.from_numpy(fitted.classes_)] = (
            decision if decision.dim() == 2 else torch.stack([-decision, decision], 1)
        )
        return Outcome(scores, {}, {"C": C, "trainings": tried + 1})

    def _sgd(self, features: Features, num_classes: int) -> Outcome:
        best = 0.0

        def watch(linear: Linear) -> None:
            nonlocal best
            best = max(best, top_k_accuracy(linear.logits(features.test), features.test_labels))

        lr, decay = self.lr if self.lr is not None else 0.004, self.weight_decay or 0.0
        linear = sgd_probe(
            *features.merged,
            num_classes,
            lr=lr,
            weight_decay=decay,
            epochs=self.epochs or 100,
            seed=self.seed,
            each_epoch=watch,
        )
        # ITRA reports the best epoch on test; the primary metric is the last one.
        return Outcome(
            linear.logits(features.test),
            {"best_epoch_on_test_top1": best},
            {"lr": lr, "weight_decay": decay},
        )

    def _adamw(self, features: Features, num_classes: int) -> Outcome:
        lr = self.lr if self.lr is not None else 0.1
        train = partial(adamw_probe, lr=lr, epochs=self.epochs or 20, seed=self.seed)
        decay = self.weight_decay or 0.0
        if self.tune:

            def score(position: int) -> float:
                linear = train(
                    features.train,
                    features.train_labels,
                    num_classes,
                    weight_decay=float(WEIGHT_DECAYS[position]),
                )
                return top_k_accuracy(linear.logits(features.valid), features.valid_labels)

            decay = float(
                WEIGHT_DECAYS[
                    search_peak(
                        lambda positions: deal([(score, position) for position in positions])
                    ).position
                ]
            )
        linear = train(*features.merged, num_classes, weight_decay=decay)
        return Outcome(linear.logits(features.test), {}, {"lr": lr, "weight_decay": decay})

    def _elevater(self, features: Features, num_classes: int, start: Tensor | None) -> Outcome:
        from vlkd_cli.elevater.sweep import Trial, search

        train = partial(train_heads, classes=num_classes, initial=start, seed=self.seed)
        trial = Trial(
            self.lr if self.lr is not None else 0.1,
            self.weight_decay if self.weight_decay is not None else 1e-6,
        )
        trainings = 1
        if self.tune:

            def score(trials: Sequence[Trial]) -> list[float]:
                settings = [HeadSetting(each.lr, each.weight_decay) for each in trials]
                best = [0.0] * len(settings)
                for bank in train(
                    features.train,
                    features.train_labels,
                    settings=settings,
                    epochs=self.epochs or 10,
                ):
                    for head in range(len(settings)):
                        best[head] = max(
                            best[head],
                            top_k_accuracy(
                                bank.probabilities(features.valid, head), features.valid_labels
                            ),
                        )
                return best

            found = search(score)
            trial, trainings = found.best, found.num_trainings + 1
        best, scores = -1.0, torch.empty(0)
        setting = [HeadSetting(trial.lr, trial.weight_decay)]
        for bank in train(*features.merged, settings=setting, epochs=(self.epochs or 10) + 40):
            now = bank.probabilities(features.test)
            accuracy = top_k_accuracy(now, features.test_labels)
            if self.protocol == "elevater" or accuracy > best:
                best, scores = accuracy, now
        return Outcome(
            scores, {}, {"lr": trial.lr, "weight_decay": trial.weight_decay, "trainings": trainings}
        )

    def _start(self, subject: Subject, pair: LabeledPair) -> Tensor | None:
        if not self.text_start:
            return None
        if subject.text is None:
            raise RecipeError(
                "suite 'linear_probe': text_start needs a text tower, but the recipe has none."
            )
        return class_features(
            subject, prompts_of(pair.test, pair.classes, self.templates, self.data)
        )


def accuracies(
    scores: Tensor, labels: Tensor, num_classes: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Top-1, top-5 where there are more classes, and mean per class, with chance."""
    metrics = {
        "top1": top_k_accuracy(scores, labels),
        "mean_per_class": mean_per_class(scores.argmax(1), labels),
    }
    chance = dict.fromkeys(metrics, 1 / num_classes)
    if num_classes > 5:
        metrics["top5"], chance["top5"] = top_k_accuracy(scores, labels, 5), 5 / num_classes
    return metrics, chance


def first_of_each_class(labels: Tensor, share: float) -> Tensor:
    """Mask `[N]` of the first ceil(share * n) of the n rows of each class; none of a class of one
    row."""
    from vlkd_cli.elevater.sampler import validation_split

    counts = torch.bincount(labels)
    split = validation_split([(label,) for label in labels.tolist()], share)
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[torch.tensor(split.valid, dtype=torch.int64)] = True
    return held & (counts[labels] > 1)


def deal(calls: Sequence[tuple[Callable[[int], float], int]]) -> list[float]:
    """The values of the calls, dealt to the ranks in turn; the same list on every rank."""
    own = [function(argument) for function, argument in calls[rank() :: world_size()]]
    everywhere = gather_objects(own)
    return [
        everywhere[number % world_size()][number // world_size()] for number in range(len(calls))
    ]
