"""Templates that make captions of class names."""

from __future__ import annotations

from collections.abc import Sequence

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import DataError

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "mesh": ("a 3D model of a {}",),
    "simple": ("a {}", "a photo of a {}", "a picture showing a {}"),
    "photo": (
        "a photo of a {}",
        "a photo of the {}",
        "a close-up photo of a {}",
        "a cropped photo of a {}",
        "a blurry photo of a {}",
        "a bright photo of a {}",
        "a dark photo of a {}",
        "a photo of a small {}",
        "a photo of a large {}",
    ),
}
"""Sets of templates by name; there are also "open_clip:imagenet" and "open_clip:simple", which
open_clip brings along."""


def templates_of(chosen: str | Sequence[str]) -> list[str]:
    """The templates of a set's name, or the given ones, each with one `{}`.

    Raises:
        DataError: no such set, or a template without a field for the name.
    """
    if isinstance(chosen, str):
        if chosen.startswith("open_clip:"):
            return _open_clip(chosen)
        if chosen not in TEMPLATE_SETS:
            known = [*TEMPLATE_SETS, "open_clip:imagenet", "open_clip:simple"]
            raise DataError(
                f"templates '{chosen}': no such set.{did_you_mean(chosen, known)} Known:"
                f" {', '.join(known)}."
            )
        return list(TEMPLATE_SETS[chosen])
    for template in chosen:
        if "{}" not in template:
            raise DataError(f"template '{template}' has no {{}} for the class name.")
    if not chosen:
        raise DataError("templates: the list is empty.")
    return list(chosen)


def captions_of(name: str, templates: Sequence[str]) -> list[str]:
    """A class name in each template."""
    return [template.replace("{}", name) for template in templates]


def _open_clip(chosen: str) -> list[str]:
    import open_clip

    sets = {
        "open_clip:imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "open_clip:simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }
    if chosen not in sets:
        raise DataError(f"templates '{chosen}': open_clip has {', '.join(sets)}.")
    return [template("{}") for template in sets[chosen]]
