"""What recipes may ask of each modality, in one table that needs no torch; `data.modality` holds
what their inputs do."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vlkd_cli.recipe.types import ModalityName

Table = Literal["sample", "text"]


class ModalityFacts(NamedTuple):
    """How towers of a modality are described, and how they read samples."""

    plural: str
    """What its towers read, as messages call it."""
    offered: str
    """What a reader offers for it, as messages call it."""
    has_views: bool
    """Whether samples are read through views, with augmentations, copies and sizes. Otherwise a
    sample has several texts, by name."""

    @property
    def table(self) -> Table:
        """What a row of cached features belongs to: a sample, or one of the samples' texts."""
        return "sample" if self.has_views else "text"


FACTS: dict[ModalityName, ModalityFacts] = {
    "image": ModalityFacts("images", "images", has_views=True),
    "text": ModalityFacts("texts", "captions", has_views=False),
    "mesh": ModalityFacts("meshes", "meshes", has_views=True),
}

PAIR: tuple[ModalityName, ModalityName] = ("image", "text")
"""The pair that distillers and suites compare where a recipe does not say otherwise."""
LEADING: ModalityName = "mesh"
"""The modality whose tower comes first where it is compared to another."""


def is_named(name: ModalityName | None) -> bool:
    """Whether samples have inputs of a modality by name, and none by view. False where it is not
    known."""
    return name is not None and not FACTS[name].has_views


def has_views(name: ModalityName | None) -> bool:
    """Whether a modality is read through views. False where it is not known."""
    return name is not None and FACTS[name].has_views
