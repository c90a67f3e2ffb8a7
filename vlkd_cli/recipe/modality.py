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

    axes: int
    """Of a batch with one picture or text of each sample, at most."""
    augment: str = "none"
    """The augmentation of a view that names none."""
    has_pixels: bool = False
    """Whether samples have a size in pixels and positions that can be masked."""

    @property
    def table(self) -> Table:
        """What a row of cached features belongs to: a sample, or one of the samples' texts."""
        return "sample" if self.has_views else "text"


FACTS: dict[ModalityName, ModalityFacts] = {
    "image": ModalityFacts("images", "images", True, 4, "standard", has_pixels=True),
    "text": ModalityFacts("texts", "captions", False, 2),
    "mesh": ModalityFacts("meshes", "meshes", True, 3, "points"),
}

PAIR: tuple[ModalityName, ModalityName] = ("image", "text")
"""The pair that distillers and suites compare by default."""
LEADING: ModalityName = "mesh"
"""The modality whose tower comes first where it is compared to another."""


def is_named(name: ModalityName | None) -> bool:
    """Whether samples have inputs of a modality by name, and none by view. False where it is not
    known."""
    return name is not None and not FACTS[name].has_views


def has_views(name: ModalityName | None) -> bool:
    """Whether a modality is read through views. False where it is not known."""
    return name is not None and FACTS[name].has_views
