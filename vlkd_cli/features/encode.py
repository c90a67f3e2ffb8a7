"""Embed a data set once; every suite reuses it.

What is cached are the features of the backbone (with its pooler), see `features.table`. The head is
applied to cached features: heads are cheap, backbones are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import RecipeError
from vlkd_cli.features.forward import evaluating, features_of, project
from vlkd_cli.features.subject import Subject
from vlkd_cli.features.table import Table, needed, sample_table, split_rows, table_key, text_table
from vlkd_cli.recipe.types import ModalityName
from vlkd_cli.towers.outputs import BACKBONE, HEAD, Source

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

Point = Literal["head", "backbone"]
Ensemble = Literal["normalize", "raw_mean"]


def embed_images(
    subject: Subject,
    reader: Reader,
    *,
    point: Point = "head",
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Features of the images of a data set, un-normalized, the same on every rank.

    Args:
        subject: whose image tower, on which device, in which precision, and where features are
            cached.
        reader: the data set.
        point: after the head, or before it.
        indices: only these positions, in this order; by default all.

    Returns:
        `[N, D]` float32 on the CPU; D is the tower's `width`, or its `feature_width` for the
        backbone.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    return _embedded(subject, sample_table(subject, "image", reader, indices, point=point), point)


def embed_samples(
    subject: Subject, modality: ModalityName, reader: Reader, *, point: Point = "head"
) -> Tensor:
    """What `embed_images` gives, of the samples of a modality that is read through views."""
    return _embedded(subject, sample_table(subject, modality, reader, point=point), point)


def embed_texts(subject: Subject, texts: Sequence[str], *, point: Point = "head") -> Tensor:
    """Features of texts, un-normalized, the same on every rank; a text that occurs twice is encoded
    once.

    Returns:
        `[M, D]` float32 on the CPU.
    """
    return _embedded(subject, text_table(subject, texts, point=point), point)


def class_features(
    subject: Subject, texts: Sequence[Sequence[str]], ensemble: Ensemble = "normalize"
) -> Tensor:
    """One unit-length feature per class, `[C, D]`: the mean of the features of its texts, each
    L2-normalized before (`normalize`) or taken as it is."""
    features = embed_texts(subject, [text for own in texts for text in own])
    if ensemble == "normalize":
        features = normalize(features)
    return normalize(
        torch.stack([block.mean(0) for block in features.split([len(own) for own in texts])])
    )


def require_equal_widths(image: int, text: int, suite: str) -> None:
    """Features of these widths can be compared.

    Raises:
        RecipeError: the widths differ.
    """
    if image != text:
        raise RecipeError(
            f"suite '{suite}': the image tower gives {image} values and the text tower {text}, and"
            f" they are compared. Give one of them `head: {{name: linear, width: {text}}}`."
        )


def encode_texts(subject: Subject, texts: Sequence[str]) -> Tensor:
    """Features of the text tower's backbone on this rank alone, without caching: for collections
    that are too large for `embed_texts`.

    Returns:
        `[M, feature_width]` float32 on the CPU, in the order of the texts.
    """
    tower = needed(subject, "text")
    features = torch.empty(len(texts), tower.feature_width)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    with evaluating(tower):
        for batch in split_rows(order, subject.batch_size):
            tokens = tower.input([texts[row] for row in batch])
            inputs = {name: tensor.to(subject.device) for name, tensor in tokens.items()}
            features[torch.from_numpy(batch)] = features_of(subject, tower, inputs)
    return features


def project_texts(subject: Subject, features: Tensor) -> Tensor:
    """Features `[M, feature_width]` of the text tower's backbone through its head, float32 on the
    CPU."""
    tower = needed(subject, "text")
    return features if isinstance(tower.head, nn.Identity) else project(subject, tower, features)


def normalize(features: Tensor) -> Tensor:
    """Rows of unit length; a row of zeros stays zero."""
    return nn.functional.normalize(features, dim=-1)


def _embedded(subject: Subject, table: Table, point: Point) -> Tensor:
    """The rows asked for, after the head or before it."""
    tower, wanted, features = table.tower, table.wanted, table.store.table()
    everything = len(wanted) == len(features) and bool((wanted == np.arange(len(wanted))).all())
    found = torch.from_numpy(features if everything else features[wanted])
    if point == "backbone" and getattr(tower, "cut", None) is not None:
        return _cut_backbone(tower, found)
    if point == "backbone" or table.output == "head" or isinstance(tower.head, nn.Identity):
        return found
    if not everything:
        return project(subject, tower, found)
    # Computed again each time: heads may be trained while tables are open.
    memo = table_key(table.key, _heads_digest(tower))
    projected = subject.tables.projected
    if memo not in projected:
        projected[memo] = project(subject, tower, found)
    return projected[memo]


def _heads_digest(tower: Tower) -> str:
    kind = getattr(tower, "cut", None), getattr(tower, "passed_on", HEAD)
    digest = hashlib.sha256(repr(kind).encode())
    for name, tensor in tower.state_dict().items():
        if name.startswith(("head.", "heads.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _cut_backbone(tower: Tower, features: Tensor) -> Tensor:
    """Features of a tower that is cut to a width, where they are those of `head` too.

    Raises:
        RecipeError: there is a head, and it is what is cut.
    """
    if tower.graph.links[HEAD].reads != (Source(BACKBONE),):
        raise RecipeError(
            f"width: {tower.cut} cuts what the head of tower '{tower.name}' gives, and this suite"
            " reads the backbone. Set features: head."
        )
    return features[:, : tower.cut]
