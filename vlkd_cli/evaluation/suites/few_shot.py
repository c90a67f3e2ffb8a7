"""What can be learned from a few images per class."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.datasets.dataset import LabeledPair, labeled_pair
from vlkd_cli.evaluation.metrics.classification import mean_per_class
from vlkd_cli.evaluation.metrics.groups import GROUP_METRICS, check_min_group, figures_by_group
from vlkd_cli.evaluation.probes.linear import logistic_regression
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import embed_images, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource


class FewShot(Suite):
    """Logistic regression on k images per class, over several random samples: mean and spread.

    Only the sampled training images are embedded. The samples are those of the ELEVATER toolkit.

    Args:
        data: labeled images that are judged.
        train_data: labeled images to sample from; by default the same data with `split: train`.
        shots: numbers of images per class; a class with fewer gives all it has.
        seeds: one sample for each.
        C: inverse regularizer; there is nothing to choose it on.
        features: features before the head, or after it.
        normalize: L2-normalize the features first.
        min_group: images that a group needs to be the worst one, by default 10, of data whose
            images belong to groups (`group:` of reader csv). A group's accuracy is the mean over
            the draws of the most shots; its interval is that of one draw.
    """

    modalities = frozenset({"image"})
    needs = frozenset({"image", "label"})
    libraries = ("scikit-learn",)

    def __init__(
        self,
        *,
        data: DataSource = None,
        train_data: DataSource = None,
        shots: int | list[int] | None = None,
        seeds: list[int] | None = None,
        C: float = 3.16,
        features: Literal["backbone", "head"] = "backbone",
        normalize: bool = False,
        min_group: int | None = None,
    ) -> None:
        self.data, self.train_data = data, train_data
        self.min_group = min_group
        check_min_group("few_shot", min_group)
        self.shots = tuple(sorted([shots] if isinstance(shots, int) else shots or (1, 5, 20)))
        self.seeds = tuple(seeds if seeds is not None else (0, 1, 2))
        self.C, self.features, self.normalize = C, features, normalize
        if self.shots[0] < 1 or not self.seeds:
            raise RecipeError("suite 'few_shot': shots must be at least 1, with at least one seed.")

    def open(self, subject: Subject) -> LabeledPair:
        pair = labeled_pair(subject, self.data, self.train_data)
        check_min_group("few_shot", self.min_group, pair.test.reader)
        return pair

    def measures(self, opened: LabeledPair) -> Measures:
        kinds = ("top1", "mean_per_class", "top1_spread")
        names = [f"{shots}shot_{kind}" for shots in self.shots for kind in kinds]
        return Measures([opened.test.name], [*names, *GROUP_METRICS])

    def run(self, subject: Subject) -> list[Result]:
        from vlkd_cli.elevater.sampler import few_shot

        pair = self.open(subject)
        labels = [(label,) for label in pair.train_labels.tolist()]
        draws = {
            (shots, seed): few_shot(labels, shots, seed)
            for shots in self.shots
            for seed in self.seeds
        }
        rows = sorted(set().union(*draws.values()))
        position_of = {row: number for number, row in enumerate(rows)}
        train = embed_images(subject, pair.train.reader, point=self.features, indices=rows)
        test = embed_images(subject, pair.test.reader, point=self.features)
        if self.normalize:
            train, test = normalize(train), normalize(test)
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        details: dict[str, object] = {}
        for shots in self.shots:
            top1, per_class, hits = [], [], []
            for seed in self.seeds:
                sampled = draws[shots, seed]
                fitted = logistic_regression(
                    train[[position_of[row] for row in sampled]],
                    pair.train_labels[sampled],
                    C=self.C,
                )
                predicted = torch.from_numpy(
                    np.asarray(fitted.predict(test.numpy()), dtype=np.int64)
                )
                hits.append((predicted == pair.test_labels).double())
                top1.append(hits[-1].mean().item())
                per_class.append(mean_per_class(predicted, pair.test_labels))
            for name, values in (("top1", top1), ("mean_per_class", per_class)):
                metrics[f"{shots}shot_{name}"] = float(np.mean(values))
                chance[f"{shots}shot_{name}"] = 1 / len(pair.classes)
            # The spread of the population of these seeds, not an estimate for all seeds.
            metrics[f"{shots}shot_top1_spread"] = float(np.std(top1))
            details[f"{shots}shot_top1_per_seed"] = dict(
                zip(map(str, self.seeds), top1, strict=True)
            )
        # After the loop: those of the most shots, which the primary metric is of.
        by_group, groups = figures_by_group(
            pair.test.reader, torch.stack(hits).mean(dim=0).numpy(), self.min_group
        )
        return [
            self.result(
                subject,
                pair.identity(),
                protocol="logistic_regression",
                metrics=metrics | by_group,
                primary_metric=f"{self.shots[-1]}shot_top1",
                chance=chance,
                num_items=len(test),
                settings={
                    "shots": list(self.shots),
                    "seeds": list(self.seeds),
                    "train_split": pair.train.split,
                },
                details=details | groups,
            )
        ]
