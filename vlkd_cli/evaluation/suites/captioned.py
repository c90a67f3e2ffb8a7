"""Linear evaluation of text features: how well does a caption's embedding predict the class of its
image?"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed.collectives import broadcast_object
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.caption_table import CaptionTable
from vlkd_cli.evaluation.datasets.dataset import (
    Dataset,
    LabeledPair,
    captions_at,
    labeled_pair,
    labels_of,
)
from vlkd_cli.evaluation.datasets.text_files import find_folder
from vlkd_cli.evaluation.probes.linear import logistic_regression
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import Point, embed_texts, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource

SWEEP = (1.0, 10.0, 100.0, 1000.0)


class Captioned(Suite):
    """Logistic regression from normalized caption features to the label of the captioned image,
    e.g. of a captioned ImageNet.

    Images are not read: a folder of two tables will do, and so will any reader of labeled images
        with captions.

    Args:
        data: folder with `train.csv` and `test.csv` (or `val.csv`; or .tsv), columns caption
            (title, text) and label (class, target), below `--data` or anywhere; or what is judged
            as `{reader: ..., ...}`. By default such tables in `--data` itself or its folder
            `captioned`.
        train_data: with a reader: what is learned from; by default the same data with `split:
            train`.
        captions: every caption is a row of its own (`all`), or only an image's first one (`first`).
        C: inverse strength of the L2 penalty; by default the best of 1, 10, 100, 1000 on a fifth of
            the training images.
        features: features after the head, or before it.

    Source: ITRA's linear evaluation of a text tower on captioned ImageNet.
    """

    modalities = frozenset({"text"})
    needs = frozenset({"text", "label"})
    libraries = ("scikit-learn",)

    def __init__(
        self,
        *,
        data: DataSource = None,
        train_data: dict[str, Any] | None = None,
        captions: Literal["all", "first"] = "all",
        C: float | None = None,
        features: Literal["head", "backbone"] = "head",
    ) -> None:
        if C is not None and C <= 0:
            raise RecipeError("suite 'captioned': C must be above 0.")
        if isinstance(data, str) and train_data is not None:
            raise RecipeError(
                "suite 'captioned': 'train_data' has no effect where 'data' is a folder of tables."
            )
        self.data, self.train_data, self.captions, self.C = data, train_data, captions, C
        self.features: Point = features

    def open(self, subject: Subject) -> LabeledPair:
        if isinstance(self.data, dict) or (self.data is None and subject.data_root is None):
            return labeled_pair(subject, self.data, self.train_data)
        endings = (".csv", ".tsv")
        holds = [f"train{ending}" for ending in endings]
        folder = find_folder(subject, self.data, "captioned", holds=holds, below=("captioned",))
        names = [f"{part}{ending}" for part in ("test", "val") for ending in endings]
        judged = next((folder / name for name in names if (folder / name).is_file()), None)
        if judged is None:
            raise DataError(f"suite 'captioned': {folder} lacks {' or '.join(names)}.")
        learned = next(folder / name for name in holds if (folder / name).is_file())
        train = CaptionTable(learned)
        test = CaptionTable(judged, train.classes)
        if train.fingerprint() == test.fingerprint():
            raise DataError(
                f"suite 'captioned': {learned} and {judged.name} hold the same captions."
            )
        classes = list(train.classes or ())
        train_set, test_set = (
            Dataset(train, folder.name, "train"),
            Dataset(test, folder.name, judged.stem),
        )
        return LabeledPair(
            train_set, test_set, classes, labels_of(train, classes), labels_of(test, classes)
        )

    def measures(self, opened: LabeledPair) -> Measures:
        return Measures([opened.test.name], ["accuracy"])

    def run(self, subject: Subject) -> list[Result]:
        pair = self.open(subject)
        train_texts, train_owner = self._rows(pair.train.reader)
        test_texts, test_owner = self._rows(pair.test.reader)
        train = normalize(embed_texts(subject, train_texts, point=self.features))
        test = normalize(embed_texts(subject, test_texts, point=self.features))
        train_labels, test_labels = pair.train_labels[train_owner], pair.test_labels[test_owner]
        if len(train_labels.unique()) < 2:
            raise DataError(
                "suite 'captioned': the training captions are all of one class"
                f" ({pair.train.name}); needs two."
            )
        strength = self.C or _choose(train, train_labels, train_owner)
        fitted = logistic_regression(train, train_labels, C=strength)
        hits = fitted.predict(test.numpy()) == test_labels.numpy()
        # Trained on every rank alike; broadcast, since threads may still differ in the last bit.
        strength, accuracy = broadcast_object((strength, float(hits.mean())))
        commonest = float(torch.bincount(test_labels).max() / len(test_labels))
        return [
            self.result(
                subject,
                pair.identity(),
                protocol=f"logistic_regression_{self.captions}_captions",
                metrics={"accuracy": accuracy},
                primary_metric="accuracy",
                chance={"accuracy": commonest},
                num_items=len(test_texts),
                settings={"C": strength, "train_captions": len(train_texts)},
            )
        ]

    def _rows(self, reader: Reader) -> tuple[list[str], Tensor]:
        """The captions that count, and the image of each."""
        texts: list[str] = []
        owner: list[int] = []
        for index in range(len(reader)):
            own = captions_at(reader, index, "captioned")[: 1 if self.captions == "first" else None]
            texts.extend(own)
            owner.extend([index] * len(own))
        return texts, torch.tensor(owner)


def _choose(features: Tensor, labels: Tensor, owner: Tensor) -> float:
    """The strength that is best on a fifth of the images; captions of one image stay together, ties
    go to the stronger penalty."""
    images = int(owner.max()) + 1
    held = torch.zeros(images, dtype=torch.bool)
    held[torch.from_numpy(np.random.RandomState(0).permutation(images)[: max(images // 5, 1)])] = (
        True
    )
    dev = held[owner]
    if len(labels[~dev].unique()) < 2:
        raise DataError(
            "suite 'captioned': a fifth of the images is too much to hold out of so few; set `C`."
        )
    scores = [
        float(
            (
                logistic_regression(features[~dev], labels[~dev], C=strength).predict(
                    features[dev].numpy()
                )
                == labels[dev].numpy()
            ).mean()
        )
        for strength in SWEEP
    ]
    return SWEEP[int(np.argmax(scores))]
