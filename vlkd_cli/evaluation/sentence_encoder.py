"""A text tower in the clothes of a SentenceTransformer, so that sentence-transformers' evaluators
can measure it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.features.encode import Point, embed_texts
from vlkd_cli.features.subject import Subject


class SentenceEncoder:
    """What the evaluators of sentence-transformers 5 call on a model; encoding uses the features
    that are split over ranks, shared and cached.

    Args:
        subject: whose text tower.
        texts: everything that will be asked for; embedded once, at the first call.
        point: features after the head, or before it.
    """

    similarity_fn_name = "cosine"

    def __init__(self, subject: Subject, texts: Sequence[str], *, point: Point = "head") -> None:
        self._subject, self._point = subject, point
        self._rows: dict[str, int] = {}
        for text in texts:
            self._rows.setdefault(text, len(self._rows))
        self._features: Tensor | None = None
        self.model_card_data = _NoCard()

    def encode(
        self, sentences: Sequence[str], *, convert_to_tensor: bool = False, **_: object
    ) -> Tensor | NDArray[np.float32]:
        """Embeddings `[N, D]` of texts that were announced; batch sizes and progress bars are the
        subject's matter."""
        if self._features is None:
            self._features = embed_texts(self._subject, list(self._rows), point=self._point)
        rows = np.fromiter(
            (self._rows[sentence] for sentence in sentences), dtype=np.int64, count=len(sentences)
        )
        found = self._features[torch.from_numpy(rows)]
        return found if convert_to_tensor else found.numpy()

    encode_query = encode
    encode_document = encode


class _NoCard:
    def set_evaluation_metrics(self, *_: object, **__: object) -> None:
        """Results belong into vlkd's own files, not on a model card."""
