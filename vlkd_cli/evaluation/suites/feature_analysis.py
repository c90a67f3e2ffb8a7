"""How image and text features lie to each other."""

from __future__ import annotations

import torch

from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.dataset import Dataset, captions_at, open_dataset
from vlkd_cli.evaluation.metrics.geometry import (
    alignment,
    effective_rank,
    mean_deviation,
    mean_positive_cosine,
    modality_gap,
    spectrum,
    uniformity,
)
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import embed_images, embed_texts, normalize, require_equal_widths
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource


class FeatureAnalysis(Suite):
    """Alignment, uniformity, modality gap and spectrum of the unit-length features of images and
    their first captions.

    These describe; only `pair_cosine` (the mean cosine of an image and its caption) has a best
    value, 1.

    Args:
        data: image-caption data.
        limit: largest number of images, spread evenly over the data.

    Source: ProtoCLIP analyze_features.py; Wang and Isola 2020; Liang et al. 2022; Roy and Vetterli
        2007.
    """

    modalities = frozenset({"image", "text"})
    needs = frozenset({"image", "text"})
    report_keys = frozenset()  # its `items` counts the images that are measured

    def __init__(self, *, data: DataSource = None, limit: int = 10_000) -> None:
        self.data, self.limit = data, limit
        if limit < 2:
            raise RecipeError("suite 'feature_analysis': limit must be at least 2.")

    def open(self, subject: Subject) -> Dataset:
        return open_dataset(subject, self.data)

    def measures(self, opened: Dataset) -> Measures:
        kinds = ("uniformity", "mean_positive_cosine", "mean_deviation", "effective_rank")
        own = [f"{modality}_{kind}" for modality in ("image", "text") for kind in kinds]
        return Measures([opened.name], ["pair_cosine", "alignment", "modality_gap", *own])

    def run(self, subject: Subject) -> list[Result]:
        dataset = self.open(subject)
        reader = dataset.reader
        count = min(self.limit, len(reader))
        if count < 2:
            raise DataError(
                f"data '{dataset.name}' has {len(reader)} images; their relations need two."
            )
        rows = [position * len(reader) // count for position in range(count)]
        captions = [captions_at(reader, row, "feature_analysis")[0] for row in rows]
        images = normalize(embed_images(subject, reader, indices=rows))
        texts = normalize(embed_texts(subject, captions))
        require_equal_widths(images.shape[1], texts.shape[1], "feature_analysis")
        metrics = {
            "pair_cosine": (images * texts).double().sum(1).mean().item(),
            "alignment": alignment(images, texts),
            "modality_gap": modality_gap(images, texts),
        }
        details: dict[str, object] = {}
        for modality, features in (("image", images), ("text", texts)):
            shares = spectrum(features)
            metrics |= {
                f"{modality}_uniformity": uniformity(features),
                f"{modality}_mean_positive_cosine": mean_positive_cosine(features),
                f"{modality}_mean_deviation": mean_deviation(features),
                f"{modality}_effective_rank": effective_rank(shares),
            }
            # The numbers of axes that hold so much of the variance, for a plot of the spectrum.
            details[f"{modality}_spectrum"] = [round(share, 8) for share in shares.tolist()]
            cumulative = shares.cumsum(0)
            details[f"{modality}_axes_for_90_percent"] = (
                int(torch.searchsorted(cumulative, torch.tensor(0.9, dtype=cumulative.dtype))) + 1
            )
        return [
            self.result(
                subject,
                dataset.identity(),
                protocol="first_caption",
                metrics=metrics,
                primary_metric="pair_cosine",
                chance={"pair_cosine": 0.0, "alignment": 2.0},
                num_items=count,
                details={**details, "width": images.shape[1]},
            )
        ]
