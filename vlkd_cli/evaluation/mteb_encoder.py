"""Towers as an encoder of mteb."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.data.readers.pictures import Pictures
from vlkd_cli.errors import UserError
from vlkd_cli.features.encode import embed_images, embed_texts, normalize, require_equal_widths
from vlkd_cli.features.subject import OpenTables, Subject
from vlkd_cli.towers.tower import Tower


def encode_batches(subject: Subject, batches: Iterable[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Unit features of batches as mteb's data loaders give them, `[N, D]`.

    A batch has `text`, a list of strings, `image`, a list of PIL images, or both; of both, the
    L2-normalized sum of the two unit features is taken.

    Raises:
        UserError: there is no tower for what a batch holds.
    """
    found = [_encoded(subject, batch) for batch in batches]
    if not found:
        return np.zeros((0, width_of(subject)), dtype=np.float32)
    return torch.cat(found).numpy().astype(np.float32)


def _encoded(subject: Subject, batch: Mapping[str, Any]) -> Tensor:
    # Features are cached for one batch only: mteb asks for each text once.
    known = subject.tables
    own = replace(
        subject,
        cache=None,
        workers=0,
        tables=OpenTables(digests=known.digests, weights=known.weights),
    )
    parts = []
    if "text" in batch:
        parts.append(normalize(embed_texts(own, list(batch["text"]))))
    if "image" in batch:
        parts.append(normalize(embed_images(own, Pictures(list(batch["image"])))))
    if not parts:
        raise UserError(f"mteb: a batch holds {', '.join(batch)}, and neither text nor image.")
    if len(parts) == 2:
        require_equal_widths(parts[1].shape[1], parts[0].shape[1], "mteb")
        return normalize(parts[0] + parts[1])
    return parts[0]


def towers_of(subject: Subject) -> dict[str, Tower]:
    """The text and image towers that there are, by mteb's names of the modalities."""
    towers = {"text": subject.text, "image": subject.image}
    return {name: tower for name, tower in towers.items() if tower is not None}


def width_of(subject: Subject) -> int:
    """Values of a feature."""
    return next(iter(towers_of(subject).values())).width


def revision_of(subject: Subject) -> str:
    """The digests of the towers, by which mteb's files are found again."""
    digests = [subject.weights_digest(tower)[:12] for tower in towers_of(subject).values()]
    return "-".join([*digests, *([subject.precision] if subject.precision != "fp32" else [])])


def mteb_encoder(subject: Subject) -> object:
    """The towers as mteb's `EncoderProtocol`: `vlkd/RUN`, its revision the digest of the weights,
    compared by cosine."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    towers = towers_of(subject)
    run = None if subject.model is None else subject.model.run
    parameters = sum(p.numel() for tower in towers.values() for p in tower.parameters())
    meta = ModelMeta(
        loader=None,
        name=f"vlkd/{Path(run).name if run else 'untrained'}",
        revision=revision_of(subject),
        release_date=None,
        languages=None,
        n_parameters=parameters,
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=width_of(subject),
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,
        modalities=list(towers),
    )

    class RunEncoder(AbsEncoder):  # type: ignore[misc, unused-ignore]
        mteb_model_meta = meta

        def encode(self, inputs: Any, **keys: Any) -> NDArray[np.float32]:
            return encode_batches(subject, inputs)

    return RunEncoder()
