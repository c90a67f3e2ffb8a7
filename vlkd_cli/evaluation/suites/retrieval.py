"""Find the image of a caption, and a caption of an image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.datasets.dataset import Dataset, captions_at, open_dataset
from vlkd_cli.evaluation.datasets.languages import in_languages, without_language
from vlkd_cli.evaluation.metrics.ranks import (
    chance_mean_rank,
    chance_median_rank,
    chance_recall,
    pair_ranks,
    rank_scores,
)
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.shown import retrieval_items, retrieval_shown
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import embed_images, embed_texts, normalize, require_equal_widths
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource


class Opened(NamedTuple):
    """Data with the captions of each image."""

    dataset: Dataset
    captions: list[list[str]]


class Retrieval(Suite):
    """Rank all captions for each image and all images for each caption by cosine.

    An image counts as right when any of its captions is among the first k, a caption when its own
    image is. Ranks begin at 1; a candidate of equal score is ahead if it precedes the own one.
    Only a block of the score matrix is ever in memory.

    Args:
        data: image-caption data, `{reader: ..., ...}`; `name` in it is what the result calls the
            split, e.g. coco2014-karpathy5k.
        k: the cut-offs of recall.
        captions_per_image: use only the first so many captions of each image; by default all.
        languages: of data in many languages (reader multilingual): `all`, or those to measure, each
            a result of its own (`xtd10/de`), and one with the means over them. Images are encoded
            once.
        items: also write the rank of every image and caption, to compare two models on the same
            items, and the pictures that the report page shows.

    Source: the hit rule of CLIP_benchmark's zeroshot_retrieval.py; ranks as open_clip_train's
        metrics.py.
    """

    modalities = frozenset({"image", "text"})
    needs = frozenset({"image", "text"})

    def __init__(
        self,
        *,
        data: DataSource = None,
        k: list[int] | None = None,
        captions_per_image: int | None = None,
        languages: str | list[str] | None = None,
        items: bool = True,
    ) -> None:
        self.data = data
        self.languages = [languages] if isinstance(languages, str) else languages
        self.k = tuple(sorted(k or (1, 5, 10)))
        self.captions_per_image = captions_per_image
        self.items = items
        if self.k[0] < 1 or (captions_per_image is not None and captions_per_image < 1):
            raise RecipeError("suite 'retrieval': k and captions_per_image must be at least 1.")
        if self.languages == []:
            raise RecipeError("suite 'retrieval': languages is empty. Name some, or `all`.")

    def open(self, subject: Subject) -> list[Opened]:
        """The data, and the captions of each image; of each language, where it has several."""
        dataset = open_dataset(subject, self.data)
        found = [dataset]
        if self.languages is not None:
            found = in_languages(subject, self.data, dataset, self.languages)
        return [
            Opened(
                each,
                [
                    captions_at(each.reader, index, "retrieval")[: self.captions_per_image]
                    for index in range(len(each.reader))
                ],
            )
            for each in found
        ]

    def measures(self, opened: list[Opened]) -> Measures:
        kinds = [*(f"R@{k}" for k in self.k), "mean_rank", "median_rank"]
        ways = ("image_to_text", "text_to_image")
        names = [f"{way}_{kind}" for way in ways for kind in kinds]
        datasets = [each.dataset.name for each in opened]
        together = [without_language(datasets[0])] if len(opened) > 1 else []
        return Measures([*datasets, *together], [*names, "mean_recall"])

    def identity(self, opened: list[Opened]) -> DataIdentity | None:
        return opened[0].dataset.identity() if len(opened) == 1 else None

    def run(self, subject: Subject) -> list[Result]:
        opened = self.open(subject)
        results = [self._measured(subject, each.dataset, each.captions) for each in opened]
        return [*results, self._mean(subject, results)] if len(results) > 1 else results

    def _measured(
        self, subject: Subject, dataset: Dataset, own_captions: list[list[str]]
    ) -> Result:
        reader = dataset.reader
        captions = [caption for own in own_captions for caption in own]
        counts = np.array([len(own) for own in own_captions], dtype=np.int64)
        images = normalize(embed_images(subject, reader))
        texts = normalize(embed_texts(subject, captions))
        require_equal_widths(images.shape[1], texts.shape[1], "retrieval")
        owner = torch.from_numpy(np.repeat(np.arange(len(reader)), counts))
        ranks = pair_ranks(
            images.to(subject.device), texts.to(subject.device), torch.from_numpy(counts)
        )
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        one_each = np.ones(len(captions), dtype=np.int64)
        for direction, found, own, candidates in (
            ("image_to_text", ranks.of_texts, counts, len(captions)),
            ("text_to_image", ranks.of_images, one_each, len(reader)),
        ):
            scores = rank_scores(found, self.k)
            for k, recall in scores.recall.items():
                metrics[f"{direction}_R@{k}"] = recall
                chance[f"{direction}_R@{k}"] = chance_recall(own, candidates, k)
            metrics[f"{direction}_mean_rank"] = scores.mean_rank
            metrics[f"{direction}_median_rank"] = scores.median_rank
            chance[f"{direction}_mean_rank"] = chance_mean_rank(own, candidates)
            chance[f"{direction}_median_rank"] = chance_median_rank(own, candidates)
        for values in (metrics, chance):
            recalls = [value for name, value in values.items() if "_R@" in name]
            values["mean_recall"] = float(np.mean(recalls))
        return self.result(
            subject,
            dataset.identity(),
            protocol=self._protocol(),
            metrics=metrics,
            primary_metric="mean_recall",
            chance=chance,
            num_items=len(reader),
            settings={"k": list(self.k), "captions": len(captions)},
            items=(
                retrieval_items(ranks.of_texts, ranks.of_images, counts) if self.items else None
            ),
            shown=(
                retrieval_shown(images, texts, owner, ranks.of_images, captions, reader)
                if self.items and is_main()
                else None
            ),
        )

    def _mean(self, subject: Subject, results: list[Result]) -> Result:
        """The mean over languages of every metric."""

        def mean(values: list[dict[str, float]]) -> dict[str, float]:
            return {name: float(np.mean([own[name] for own in values])) for name in values[0]}

        hashes = {result.dataset: result.hashes["rows"] for result in results}
        name = without_language(results[0].dataset)
        return self.result(
            subject,
            DataIdentity(name, results[0].split, hashes),
            protocol=self._protocol(),
            metrics=mean([result.metrics for result in results]),
            primary_metric="mean_recall",
            chance=mean([result.chance for result in results]),
            num_items=sum(result.num_items for result in results),
            settings={"k": list(self.k), "mean_over": list(hashes)},
        )

    def _protocol(self) -> str:
        if self.captions_per_image is None:
            return "all_captions"
        return f"first_{self.captions_per_image}_captions"
