"""Train the whole image tower on labels."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch

from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.datasets.dataset import LabeledPair, labeled_pair
from vlkd_cli.evaluation.datasets.prompts import prompts_of
from vlkd_cli.evaluation.metrics.classification import top_k_accuracy, top_k_hits
from vlkd_cli.evaluation.metrics.groups import GROUP_METRICS, check_min_group, figures_by_group
from vlkd_cli.evaluation.probes.fine_tuning import (
    TowerClassifier,
    class_probabilities,
    train_classifier,
)
from vlkd_cli.evaluation.probes.probes import HeadSetting
from vlkd_cli.evaluation.probes.wise_ft import interpolate_states
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.evaluation.suites.linear_probe import accuracies
from vlkd_cli.features.encode import class_features
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource


class FineTune(Suite):
    """Fine-tune a copy of the image tower with a linear classifier on it, as ELEVATER does, and
    judge the last epoch.

    Every rank trains the same copy on the same batches, so that the numbers are those of one
    process; more make it no faster.

    Args:
        data: labeled images that are judged.
        train_data: labeled images to learn from; by default the same data with `split: train`.
        epochs: passes over the training images; the learning rate is constant.
        lr: learning rate of SGD with momentum 0.9.
        weight_decay: on all weights and biases.
        batch_size: images per step.
        features: the classifier's input: features before the head, or after it.
        text_start: start the classifier from the classes' text features, which needs `features:
            head` and a text tower.
        templates: prompt templates for `text_start`, as in zero_shot.
        wise_ft: also score the weights between the start (0) and the end (1) of fine-tuning; makes
            sense with `text_start`.
        seed: of the order of images and of the classifier's start.
        min_group: images that a group needs to be the worst one, by default 10, of data whose
            images belong to groups (`group:` of reader csv).

    Source: Elevater_Toolkit_IC @00d0af7, full_model_finetune.py; Wortsman et al. 2022 for
        `wise_ft`.
    """

    modalities = frozenset({"image"})
    needs = frozenset({"image", "label"})

    def __init__(
        self,
        *,
        data: DataSource = None,
        train_data: DataSource = None,
        epochs: int = 10,
        lr: float = 0.01,
        weight_decay: float = 1e-6,
        batch_size: int = 64,
        features: Literal["backbone", "head"] = "head",
        text_start: bool = False,
        templates: str | list[str] | None = None,
        wise_ft: list[float] | None = None,
        seed: int = 0,
        min_group: int | None = None,
    ) -> None:
        self.data, self.train_data = data, train_data
        self.min_group = min_group
        check_min_group("fine_tune", min_group)
        self.epochs, self.setting, self.batch_size, self.seed = (
            epochs,
            HeadSetting(lr, weight_decay),
            batch_size,
            seed,
        )
        self.features, self.text_start, self.templates, self.wise_ft = (
            features,
            text_start,
            templates,
            tuple(wise_ft or ()),
        )
        if text_start:
            self.uses = frozenset({"image", "text"})
        if epochs < 1 or batch_size < 2:
            raise RecipeError(
                "suite 'fine_tune': epochs must be at least 1 and batch_size at least 2."
            )
        if text_start and features == "backbone":
            raise RecipeError(
                "suite 'fine_tune': text_start needs `features: head`, where image and text"
                " features compare."
            )

    def open(self, subject: Subject) -> LabeledPair:
        pair = labeled_pair(subject, self.data, self.train_data)
        check_min_group("fine_tune", self.min_group, pair.test.reader)
        return pair

    def measures(self, opened: LabeledPair) -> Measures:
        between = [f"wise_ft_{alpha:g}_top1" for alpha in self.wise_ft]
        names = ["top1", "top5", "mean_per_class", *between, *GROUP_METRICS]
        return Measures([opened.test.name], names)

    def run(self, subject: Subject) -> list[Result]:
        assert subject.image is not None
        pair = self.open(subject)
        start = None
        if self.text_start:
            if subject.text is None:
                raise RecipeError(
                    "suite 'fine_tune': text_start needs a text tower, but the recipe has none."
                )
            start = class_features(
                subject, prompts_of(pair.test, pair.classes, self.templates, self.data)
            )
        num_classes = len(pair.classes)
        network = TowerClassifier(
            subject.image, num_classes, point=self.features, initial=start, seed=self.seed
        )
        before = copy.deepcopy(network.state_dict())
        rows, test_rows = range(len(pair.train_labels)), range(len(pair.test_labels))
        keys: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        for _ in train_classifier(
            subject, network, pair.train.reader, rows, pair.train_labels, self.setting, **keys
        ):
            pass
        scores = class_probabilities(subject, network, pair.test.reader, test_rows)
        metrics, chance = accuracies(scores, pair.test_labels, num_classes)
        hits = top_k_hits(scores, pair.test_labels, 1).numpy()
        by_group, details = figures_by_group(pair.test.reader, hits, self.min_group)
        after = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        for alpha in self.wise_ft:
            network.load_state_dict(interpolate_states(before, after, alpha))
            probabilities = class_probabilities(subject, network, pair.test.reader, test_rows)
            metrics[f"wise_ft_{alpha:g}_top1"] = top_k_accuracy(probabilities, pair.test_labels)
            chance[f"wise_ft_{alpha:g}_top1"] = 1 / num_classes
        del network
        if subject.device.type == "cuda":
            torch.cuda.empty_cache()
        return [
            self.result(
                subject,
                pair.identity(),
                protocol="elevater_last_epoch",
                metrics=metrics | by_group,
                primary_metric="top1",
                chance=chance,
                num_items=len(pair.test_labels),
                details=details,
                settings={
                    "train_split": pair.train.split,
                    "train_images": len(pair.train_labels),
                },
            )
        ]
