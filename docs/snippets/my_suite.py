"""A suite of one's own: see docs/add_a_suite.md."""

from __future__ import annotations

from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import open_dataset
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Suite
from vlkd_cli.features.encode import embed_images, embed_texts, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource


class TwoCaptions(Suite):
    """Fraction of the images that are more similar to their own first caption than to that of the
    next image; a tie counts one half.

    Args:
        data: image-caption data, `{reader: ..., ...}`.
    """

    modalities = frozenset({"image", "text"})
    needs = frozenset({"image", "text"})

    def __init__(self, *, data: DataSource = None) -> None:
        self.data = data

    def run(self, subject: Subject) -> list[Result]:
        data = open_dataset(subject, self.data)
        if len(data.reader) < 2:
            raise DataError(f"data '{data.name}': a separation needs at least two images.")
        images = normalize(embed_images(subject, data.reader))
        captions = normalize(
            embed_texts(
                subject, [data.reader.captions(index)[0] for index in range(len(data.reader))]
            )
        )
        own = (images * captions).sum(1)
        other = (images * captions.roll(-1, 0)).sum(1)
        share = ((own > other).float() + 0.5 * (own == other).float()).mean()
        return [
            self.result(
                subject,
                data.identity(),
                protocol="next_image",
                metrics={"accuracy": float(share)},
                primary_metric="accuracy",
                chance={"accuracy": 0.5},
                num_items=len(images),
            )
        ]
