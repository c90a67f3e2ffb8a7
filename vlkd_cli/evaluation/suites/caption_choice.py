"""Distinguish the captions of an image from captions that are almost right."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.data.readers.choices import WRONG, Choices
from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.choice_sets import SYMMETRIC, choice_sets
from vlkd_cli.evaluation.datasets.dataset import Dataset
from vlkd_cli.evaluation.metrics.choices import (
    PAIR_CHANCE,
    caption_outcomes,
    chance_of_choice,
    pair_outcomes,
)
from vlkd_cli.evaluation.metrics.groups import (
    GROUP_METRICS,
    check_min_group,
    figures_by_group,
    group_rows,
)
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.shown import Arrays
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import embed_images, embed_texts, normalize, require_equal_widths
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource

MACRO_MIN = {"vg_relation": 1, "vg_attribution": 25}
"""Items that a relation or a pair of attributes needs to count in ARO's macro accuracy."""
ROWS_AT_ONCE = 4096


class CaptionChoice(Suite):
    """An image is right if its own caption scores strictly above every wrong one by cosine; a tie
    is wrong, and `ties` in the details counts them.

    SugarCrepe and ARO's order sets give `accuracy`; ARO's VG_Relation and VG_Attribution also its
    `macro_accuracy` over relations (without those that its notebook leaves out as symmetric) or
    over pairs of attributes (of at least 25 items, where any has as many); Winoground
    `text_score`, `image_score` and `group_score`. A folder with several files gives a result for
    each, and one with their mean and the accuracy over all items.

    Args:
        data: a file of right and wrong captions, its folder, a name such as
            `sugar_crepe/add_att` below `--data`, or `{reader: choices, ...}`.
        right: where an image has several right captions: all of them must be above the wrong ones,
            or any.
        min_group: items that a group needs to be the worst one, by default 10, of data whose items
            have a `group`.
        items: also write whether each item is right, to compare two models on the same items.

    Source: Hsieh et al., SugarCrepe (NeurIPS 2023); Yuksekgonul et al., ARO (ICLR 2023); Thrush et
        al., Winoground (CVPR 2022). Differs from CLIP_benchmark, whose argmax gives a tie to the
        first caption, only where scores are equal.
    """

    modalities = frozenset({"image", "text"})
    needs = frozenset({"image", "text", "choices"})

    def __init__(
        self,
        *,
        data: DataSource = None,
        right: Literal["all", "any"] = "all",
        min_group: int | None = None,
        items: bool = True,
    ) -> None:
        self.data = data
        self.right: Literal["all", "any"] = right
        self.min_group = min_group
        self.items = items
        check_min_group("caption_choice", min_group)

    def open(self, subject: Subject) -> list[Dataset]:
        """The files, one data set each."""
        found = choice_sets(subject, self.data)
        for dataset in found:
            if not isinstance(dataset.reader, Choices):
                raise DataError(
                    f"data '{dataset.name}' has no wrong captions. Give suite 'caption_choice' a"
                    " file of right and wrong captions, `data: {reader: choices, path: ...}`."
                )
            check_min_group("caption_choice", self.min_group, dataset.reader)
        return found

    def identity(self, opened: list[Dataset]) -> DataIdentity | None:
        return opened[0].identity() if len(opened) == 1 else None

    def measures(self, opened: list[Dataset]) -> Measures:
        datasets = [dataset.name for dataset in opened]
        metrics = ["accuracy", "macro_accuracy", *PAIR_CHANCE, *GROUP_METRICS]
        if len(opened) > 1:
            datasets.append(datasets[0].partition("/")[0])
            metrics += ["mean_accuracy", "micro_accuracy"]
        return Measures(datasets, metrics)

    def run(self, subject: Subject) -> list[Result]:
        opened = self.open(subject)
        results = [self._measured(subject, dataset) for dataset in opened]
        return [*results, self._together(subject, opened, results)] if len(opened) > 1 else results

    def _measured(self, subject: Subject, dataset: Dataset) -> Result:
        reader = dataset.reader
        assert isinstance(reader, Choices)
        scored = _scored(subject, reader)
        if reader.layout == "winoground":
            outcome = self._pairs(scored)
        else:
            outcome = self._captions(reader, scored)
        if is_main():  # to be compared with the number that a paper gives
            ties = outcome.details["ties"]
            console.say(f"{dataset.name}: {outcome.num_items} items, {ties} wrong by a tie alone")
        return self.result(
            subject,
            dataset.identity(),
            protocol=reader.layout,
            metrics=outcome.metrics,
            primary_metric=outcome.primary,
            chance=outcome.chance,
            num_items=outcome.num_items,
            details=outcome.details,
            items=outcome.items if self.items else None,
        )

    def _captions(self, reader: Choices, scored: _Scores) -> _Outcome:
        rows = np.split(scored.own, scored.starts[1:-1])
        right, tied = caption_outcomes(rows, scored.num_right.tolist(), self.right)
        chance = [
            chance_of_choice(int(n), len(row) - int(n), self.right)
            for row, n in zip(rows, scored.num_right, strict=True)
        ]
        metrics = {"accuracy": float(right.mean())}
        chances = {"accuracy": math.fsum(chance) / len(chance)}
        details: dict[str, object] = {"ties": int(tied.sum()), "right": int(right.sum())}
        if reader.layout in MACRO_MIN:
            metrics["macro_accuracy"] = _macro(reader, right)
            chances["macro_accuracy"] = 0.5
        by_group, groups = figures_by_group(reader, right, self.min_group)
        return _Outcome(
            metrics | by_group,
            "macro_accuracy" if "macro_accuracy" in metrics else "accuracy",
            chances,
            len(right),
            details | groups,
            {"right": np.packbits(right)},
        )

    def _pairs(self, scored: _Scores) -> _Outcome:
        found = pair_outcomes(scored.pairs())
        values = {"text": found.text, "image": found.image, "group": found.group}
        return _Outcome(
            {f"{name}_score": float(hits.mean()) for name, hits in values.items()},
            "group_score",
            dict(PAIR_CHANCE),
            len(found.group),
            {"ties": int(found.tied.sum()), "right": int(found.group.sum())},
            {
                "right": np.packbits(found.group),
                "right_text": np.packbits(found.text),
                "right_image": np.packbits(found.image),
            },
        )

    def _together(self, subject: Subject, opened: list[Dataset], results: list[Result]) -> Result:
        sizes = [result.num_items for result in results]
        right = [result.details["right"] for result in results]
        values = [result.metrics[result.primary_metric] for result in results]
        chances = [result.chance[result.primary_metric] for result in results]
        hashes = {dataset.name: dataset.row_hash for dataset in opened}
        identity = DataIdentity(opened[0].name.partition("/")[0], opened[0].split, hashes)
        return self.result(
            subject,
            identity,
            protocol="mean",
            metrics={
                "mean_accuracy": float(np.mean(values)),
                "micro_accuracy": sum(right) / sum(sizes),
            },
            primary_metric="mean_accuracy",
            chance={
                "mean_accuracy": float(np.mean(chances)),
                "micro_accuracy": float(np.average(chances, weights=sizes)),
            },
            num_items=sum(sizes),
            details={"items": dict(zip(hashes, sizes, strict=True))},
        )


class _Outcome(NamedTuple):
    metrics: dict[str, float]
    primary: str
    chance: dict[str, float]
    num_items: int
    details: dict[str, object]
    items: Arrays


class _Scores(NamedTuple):
    """Cosines of each item with its captions, right ones first."""

    own: NDArray[np.float64]
    """All items' one after another; item i's are from `starts[i]` to `starts[i + 1]`."""
    starts: NDArray[np.int64]
    num_right: NDArray[np.int64]

    def pairs(self) -> NDArray[np.float64]:
        """Of items that come in pairs, image by caption `[N, 2, 2]`: the second item's captions are
        the first one's in the other order."""
        found = self.own.reshape(-1, 2, 2).copy()
        found[:, 1] = found[:, 1, ::-1]
        return found


def _scored(subject: Subject, reader: Choices) -> _Scores:
    captions: list[str] = []
    counts, num_right = [], []
    for index in range(len(reader)):
        own = list(reader.captions(index))
        captions += own
        counts.append(len(own))
        num_right.append(reader.text_span(index, WRONG)[0])
    # A picture that several items share is encoded once.
    pictures, position = np.unique(reader.first_rows, return_inverse=True)
    images = normalize(embed_images(subject, reader, indices=pictures.tolist()))
    texts = normalize(embed_texts(subject, captions))
    require_equal_widths(images.shape[1], texts.shape[1], "caption_choice")
    owner = torch.from_numpy(np.repeat(position, counts))
    # In float64, so that rounding neither makes nor breaks a tie of different captions.
    cosines = torch.cat(
        [
            (block.double() * images[rows].double()).sum(1)
            for block, rows in zip(
                texts.split(ROWS_AT_ONCE), owner.split(ROWS_AT_ONCE), strict=True
            )
        ]
    )
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return _Scores(cosines.numpy(), starts, np.array(num_right, dtype=np.int64))


def _macro(reader: Choices, right: NDArray[np.bool_]) -> float:
    rows = group_rows(right, [reader.group(index) for index in range(len(reader))])
    if reader.layout == "vg_relation":
        rows = [row for row in rows if row["group"] not in SYMMETRIC] or rows
    large = [row for row in rows if row["n"] >= MACRO_MIN[reader.layout]]
    return float(np.mean([row["share"] for row in large or rows]))
