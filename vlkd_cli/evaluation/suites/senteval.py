"""SentEval: what a simple classifier can read off frozen sentence features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.distributed.collectives import broadcast_object
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.senteval_tasks import PROBING, TASKS, TRANSFER, Part, Task
from vlkd_cli.evaluation.datasets.text_files import (
    file_hashes,
    find_folder,
    missing_files,
)
from vlkd_cli.evaluation.probes.relatedness import relatedness
from vlkd_cli.evaluation.probes.transfer import (
    Protocol,
    Scores,
    folds_then_test,
    given_split,
    nested_folds,
)
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import Point, embed_texts
from vlkd_cli.features.subject import Subject

TABLE = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
"""The columns of the usual transfer table, whose mean is its last one."""


class SentEval(Suite):
    """Transfer tasks (MR, CR, SUBJ, MPQA, SST2, SST5, TREC, MRPC, SICK-E), supervised relatedness
    (SICK-R, STS-B), ten probing tasks.

    A classifier is trained on frozen features; weight decay is chosen by cross-validation or on the
    development set, as each task prescribes. Pairs (u, v) are given as |u - v| and u * v. This is
    another protocol than suite `sts`, which compares without training.

    Args:
        data: folder with SentEval's `downstream` and `probing`; by default `--data`.
        tasks: names, or `transfer` and `probing` for all of a group. By default all whose files are
            there; what the others miss is named.
        classifier: `paper` (10 folds, Adam, batches of 64, tenacity 5, epoch size 4), `fast` (5
            folds, RMSprop, 128, 3, 2), or `sklearn` (logistic regression).
        kfold: other number of folds.
        hidden: units of a hidden layer, 0 for a linear classifier. The probing paper tuned 50, 100
            and 200; WordContent is always linear.
        dropout: in the hidden layer.
        seed: of folds, starts and batches.
        features: features after the head, or before it.

    Source: Conneau and Kiela, SentEval, LREC 2018; Conneau et al., What you can cram into a single
    vector, ACL 2018. Differs from the original code in running without a GPU, and in that weight
    decay counts as today's PyTorch averages the loss.
    """

    modalities = frozenset({"text"})
    libraries = ("scikit-learn",)

    def __init__(
        self,
        *,
        data: str | None = None,
        tasks: list[str] | None = None,
        classifier: Literal["paper", "fast", "sklearn"] = "paper",
        kfold: int | None = None,
        hidden: int = 0,
        dropout: float = 0.0,
        seed: int = 1111,
        features: Literal["head", "backbone"] = "head",
    ) -> None:
        known = [*TASKS, "transfer", "probing"]
        for name in tasks or ():
            if name not in known:
                raise RecipeError(
                    f"suite 'senteval': unknown task '{name}'.{did_you_mean(name, known)} Known:"
                    f" {', '.join(known)}."
                )
        if classifier == "sklearn" and hidden:
            raise RecipeError(
                "suite 'senteval': 'hidden' has no effect with classifier 'sklearn', which is"
                " linear."
            )
        if dropout and not hidden:
            raise RecipeError(
                "suite 'senteval': 'dropout' has no effect without a hidden layer; set 'hidden'."
            )
        if kfold is not None and kfold < 2:
            raise RecipeError("suite 'senteval': kfold must be at least 2.")
        self.data, self.tasks, self.classifier = data, tasks, classifier
        self.kfold = kfold or (5 if classifier == "fast" else 10)
        self.hidden, self.dropout, self.seed = hidden, dropout, seed
        self.features: Point = features

    def open(self, subject: Subject) -> tuple[Path, list[str]]:
        """The folder, and the tasks whose files are there."""
        below = ("senteval", "SentEval/data", "data", "sentences", "simcse_sts_data")
        root = find_folder(
            subject, self.data, "senteval", holds=("downstream", "probing"), below=below
        )
        return root, self._present(root)

    def measures(self, opened: tuple[Path, list[str]]) -> Measures:
        names = ["accuracy", "dev_accuracy", "f1", "pearson", "spearman", "mse", "dev_pearson"]
        return Measures([*opened[1], "average"], names)

    def run(self, subject: Subject) -> list[Result]:
        root, tasks = self.open(subject)
        results = [self._evaluate(subject, root, name) for name in tasks]
        if all(any(result.dataset == name for result in results) for name in TABLE):
            table = [result for result in results if result.dataset in TABLE]
            results.append(self._average(subject, table))
        return results

    def _present(self, root: Path) -> list[str]:
        groups = {"transfer": list(TRANSFER), "probing": list(PROBING)}
        wanted = (
            list(TASKS)
            if self.tasks is None
            else [task for name in self.tasks for task in groups.get(name, [name])]
        )
        missing = {name: missing_files(root, TASKS[name].files) for name in wanted}
        present = [name for name in wanted if not missing[name]]
        lacking = "; ".join(
            f"{name} lacks {', '.join(files)}" for name, files in missing.items() if files
        )
        if lacking and (self.tasks is not None or not present):
            raise DataError(
                f"suite 'senteval': below {root}, {lacking}. Put the files there, or choose"
                " the tasks that you have with `tasks:`."
            )
        if lacking:
            console.warn(f"suite 'senteval': only {', '.join(present)}; below {root}, {lacking}.")
        return present

    def _evaluate(self, subject: Subject, root: Path, name: str) -> Result:
        task = TASKS[name]
        parts = task.read([root / file for file in task.files])
        for part in parts:
            if not len(part.labels):
                raise DataError(
                    f"suite 'senteval': {name} has an empty part in {', '.join(task.files)} below"
                    f" {root}."
                )
        if task.scheme != "relatedness" and len(np.unique(parts[0].labels)) < 2:
            raise DataError(
                f"suite 'senteval': {name} has training sentences of one class only in"
                f" {task.files[0]} below {root}."
            )
        features = self._features(subject, parts)
        if task.scheme == "relatedness":
            found = relatedness(*_scored(features, parts), seed=self.seed, device=subject.device)
            metrics = {
                "pearson": found.pearson,
                "spearman": found.spearman,
                "mse": found.mse,
                "dev_pearson": found.dev_pearson,
            }
            primary, chance = "pearson", {"pearson": 0.0, "spearman": 0.0, "dev_pearson": 0.0}
        else:
            try:
                scores = self._scores(subject, task, features, parts)
            except DataError as error:
                raise DataError(f"suite 'senteval': {name}: {error}") from error
            metrics, primary = (
                {
                    "accuracy": scores.test / 100,
                    "dev_accuracy": scores.dev / 100,
                },
                "accuracy",
            )
            chance = {"accuracy": _commonest(parts[-1]), "dev_accuracy": _commonest(parts[-1])}
            if task.f1 and scores.predicted is not None:
                from sklearn.metrics import f1_score

                metrics["f1"] = float(f1_score(parts[-1].labels, scores.predicted))
        # Trained on every rank alike; broadcast, since threads may still differ in the last bit.
        metrics = broadcast_object(metrics)
        split = "folds" if task.scheme == "nested" else "test"
        return self.result(
            subject,
            DataIdentity(name, split, file_hashes(root, task.files)),
            protocol=(
                f"{task.scheme}_{'regressor' if task.scheme == 'relatedness' else self.classifier}"
            ),
            metrics=metrics,
            primary_metric=primary,
            chance=chance,
            num_items=len(parts[-1].labels),
            settings={
                "kfold": self.kfold if task.scheme in ("nested", "folds") else None,
                "hidden": 0 if task.linear else self.hidden,
                "sizes": [len(part.labels) for part in parts],
            },
        )

    def _scores(
        self, subject: Subject, task: Task, features: Sequence[Tensor], parts: Sequence[Part]
    ) -> Scores:
        labeled = [
            (own, part.labels.astype(np.int64)) for own, part in zip(features, parts, strict=True)
        ]
        hidden = 0 if task.linear else self.hidden
        dropout = self.dropout if hidden else 0.0
        protocol = Protocol(self.classifier, self.kfold, self.seed, hidden, dropout, subject.device)
        if task.scheme == "nested":
            return nested_folds(*labeled[0], protocol)
        if task.scheme == "folds":
            return folds_then_test(labeled[0], labeled[1], protocol)
        return given_split(labeled[0], labeled[1], labeled[2], protocol)

    def _features(self, subject: Subject, parts: Sequence[Part]) -> list[Tensor]:
        texts = [text for part in parts for text in (*part.first, *(part.second or ()))]
        embedded = embed_texts(subject, texts, point=self.features)
        features, start = [], 0
        for part in parts:
            size = len(part.labels)
            first = embedded[start : start + size]
            start += size
            if part.second is None:
                features.append(first)
                continue
            second = embedded[start : start + size]
            start += size
            features.append(torch.cat([(first - second).abs(), first * second], dim=1))
        return features

    def _average(self, subject: Subject, table: Sequence[Result]) -> Result:
        hashes = {file: digest for result in table for file, digest in result.hashes.items()}
        return self.result(
            subject,
            DataIdentity("average", "test", hashes),
            protocol=table[0].protocol.partition("_")[2],
            metrics={"accuracy": float(np.mean([result.metrics["accuracy"] for result in table]))},
            primary_metric="accuracy",
            chance={"accuracy": float(np.mean([result.chance["accuracy"] for result in table]))},
            num_items=sum(result.num_items for result in table),
            settings={"tasks": [result.dataset for result in table]},
        )


def _scored(
    features: Sequence[Tensor], parts: Sequence[Part]
) -> list[tuple[Tensor, NDArray[np.float64]]]:
    return [
        (own, part.labels.astype(np.float64)) for own, part in zip(features, parts, strict=True)
    ]


def _commonest(part: Part) -> float:
    """Fraction of the most frequent class: what always giving one answer reaches."""
    return float(np.unique(part.labels, return_counts=True)[1].max() / len(part.labels))
