"""Sizes of PointNet++: the authors' two models, and what a recipe's `config` replaces of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError


class Sizes(NamedTuple):
    """What `config` may replace; entries per stage, and per scale where a stage has several."""

    centers: list[Any]
    neighbors: list[Any]
    radii: list[Any]
    widths: list[Any]
    width: float = 1.0


SIZES = {
    "ssg": Sizes(
        centers=[512, 128],
        neighbors=[32, 64],
        radii=[0.2, 0.4],
        widths=[[64, 64, 128], [128, 128, 256], [256, 512, 1024]],
    ),
    "msg": Sizes(
        centers=[512, 128],
        neighbors=[[16, 32, 128], [32, 64, 128]],
        radii=[[0.1, 0.2, 0.4], [0.2, 0.4, 0.8]],
        widths=[
            [[32, 32, 64], [64, 64, 128], [64, 96, 128]],
            [[64, 64, 128], [128, 128, 256], [128, 128, 256]],
            [256, 512, 1024],
        ],
    ),
}


def sizes_of(model: str, config: Mapping[str, Any]) -> Sizes:
    """The model's sizes, overridden by those of `config`; each of the first two stages has lists
    with an entry for each scale.

    Raises:
        RecipeError: a key is unknown, or its value does not fit.
    """
    # British spelling is understood too.
    own = {k.replace("tres", "ters").replace("ours", "ors"): v for k, v in config.items()}
    for key in own:
        if key not in Sizes._fields:
            guess = did_you_mean(key, Sizes._fields)
            raise _wrong(key, f"unknown key.{guess} Accepted: {', '.join(Sizes._fields)}.")
    sizes = SIZES[model]._replace(**own)
    for key, stages in (("centers", 2), ("neighbors", 2), ("radii", 2), ("widths", 3)):
        value = getattr(sizes, key)
        if not isinstance(value, (list, tuple)) or len(value) != stages:
            raise _wrong(key, f"expected {stages} entries, one for each stage, got {value!r}.")
    if not _is_positive(sizes.width):
        raise _wrong("width", f"expected a number above 0, got {sizes.width!r}.")
    _check_numbers("centers", sizes.centers, whole=True)
    if sizes.centers[1] > sizes.centers[0]:
        raise _wrong("centers", "the second stage has more centers than the first.")
    *grouping, last = (_widths(value) for value in sizes.widths)
    if len(last) > 1:
        raise _wrong("widths", f"the third stage has one scale, got {sizes.widths[2]!r}.")
    sizes = sizes._replace(
        neighbors=[_listed(value) for value in sizes.neighbors],
        radii=[_listed(value) for value in sizes.radii],
        widths=[*grouping, last[0]],
    )
    for stage in range(2):
        _check_numbers("neighbors", sizes.neighbors[stage], whole=True)
        _check_numbers("radii", sizes.radii[stage], whole=False)
        counts = {key: len(getattr(sizes, key)[stage]) for key in ("neighbors", "radii", "widths")}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{key} {count}" for key, count in counts.items())
            raise _wrong("radii", f"stage {stage + 1} has unequal numbers of scales: {found}.")
    return sizes


def _widths(value: object) -> list[list[int]]:
    """The widths of a stage's layers, one list for each scale."""
    scales = _listed(value)
    scales = scales if all(isinstance(scale, (list, tuple)) for scale in scales) else [scales]
    for scale in scales:
        if not scale:
            raise _wrong("widths", "a scale has no layers.")
        _check_numbers("widths", scale, whole=True)
    return scales


def _check_numbers(key: str, values: Sequence[object], *, whole: bool) -> None:
    for value in values:
        if not _is_positive(value) or (whole and not isinstance(value, int)):
            kind = "integers" if whole else "numbers"
            raise _wrong(key, f"expected {kind} above 0, got {value!r}.")


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < float("inf")  # type: ignore[operator]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _wrong(key: str, problem: str) -> RecipeError:
    return RecipeError(f"builder 'pointnet': config.{key}: {problem}")
