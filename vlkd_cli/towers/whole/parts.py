"""What a whole model of a library is put together from: plain encoders, and linear heads that
become part of their projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import UserError, WeightsError
from vlkd_cli.heads.linear import LinearHead
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.towers.merging import merged_tower
from vlkd_cli.towers.onnx.check import agree
from vlkd_cli.towers.outputs import HEAD
from vlkd_cli.towers.tower import Tower

NUM_COMPARED = 32
MOST_DIFFERENCE = 1e-5
"""Largest difference as a fraction of the largest value."""
REMEDY = "Export the towers one by one (without --format), or as ONNX (--format onnx)."


class Mismatch(WeightsError):
    """A tower that a format cannot store."""

    def __init__(self, what: str, problem: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{what}: {problem}. {remedy}")


class Linear(NamedTuple):
    """A linear map after a tower's feature: `weight` `[out, in]` and `bias` `[out]`; both None
    where there is none."""

    weight: Tensor | None = None
    bias: Tensor | None = None

    def of(
        self, projection: Tensor | None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The map after a projection `[in, width]` with this bias, as one: `[out, width]` and its
        bias."""
        if self.weight is None:
            assert projection is not None
            return projection, bias
        weight = self.weight if projection is None else self.weight @ projection
        if bias is None:
            return weight, self.bias
        moved = self.weight @ bias
        return weight, moved if self.bias is None else moved + self.bias


def name_of(tower: Tower) -> str:
    return f"tower '{tower.name}'"


def encoder_of(tower: Tower, kind: type[Backbone], library: str) -> Any:
    """The tower's encoder, its adapter merged.

    Raises:
        Mismatch: it is of another builder, or the tower has a pooler or a learned prompt.
    """
    what = name_of(tower)
    if not isinstance(tower.encoder, kind):
        builder = "another builder" if tower.section is None else f"`{tower.section.builder}`"
        raise Mismatch(what, f"it is of builder {builder}, which {library} cannot store")
    if tower.pooler is not None:
        raise Mismatch(what, f"it has a pooler, which {library} cannot store")
    if tower.encoder.prompted:
        raise Mismatch(what, f"it has a learned prompt, which {library} cannot store")
    return merged_tower(tower).encoder


def linear_head(tower: Tower, library: str, *, bias: bool) -> Linear:
    """The tower's head as a linear map.

    Args:
        bias: whether the library's projection can have one.

    Raises:
        Mismatch: the head is another.
    """
    parts = tower.parts()
    if HEAD not in parts:
        return Linear()
    head = parts[HEAD].module
    reads = [source.output for source in parts[HEAD].reads]
    if type(head) is not LinearHead or reads != ["backbone"]:
        raise Mismatch(
            name_of(tower), f"its head is not `linear`, and {library} has one projection only"
        )
    weight, own = head.linear.weight.detach(), head.linear.bias
    if own is None or not bool(own.any()):
        return Linear(weight)
    if not bias:
        raise Mismatch(
            name_of(tower),
            f"its head has a bias, and the projection of {library} has none",
            "Train with `head: {name: linear, bias: false, ...}`, or use --format onnx.",
        )
    return Linear(weight, own.detach())


def same_width(image: Tower, text: Tower) -> int:
    """Raises Mismatch where two towers have no space in common."""
    if image.width != text.width:
        raise Mismatch(
            f"towers '{image.name}' and '{text.name}'",
            f"they give {image.width} and {text.width} values, and a whole model compares them",
        )
    return image.width


def sample_texts(count: int = NUM_COMPARED) -> list[str]:
    """Texts of several lengths."""
    words = "a photo of two red dogs next to the small blue circle on one green hill".split()
    return [" ".join(words[start % 7 : start % 7 + 1 + start % 9]) for start in range(count)]


def sample_images(expected: ImageInput, count: int = NUM_COMPARED) -> Tensor:
    """Random uint8 pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, *expected.size_px)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def insist_on_equal(
    what: str, folder: Path, found: Callable[[], Sequence[tuple[Tensor, Tensor]]]
) -> None:
    """Compare what was written with the towers.

    Args:
        found: loads it with its library; pairs of the towers' vectors and the library's.

    Raises:
        UserError: the library cannot load it, or its vectors differ.
    """
    try:
        with torch.no_grad():
            agreement = agree(found())
    # Libraries raise exceptions of many kinds.
    except Exception as error:
        raise UserError(
            f"{what}: the library cannot load what was written: {first_line(error)}. {REMEDY}"
        ) from error
    if not agreement.difference <= MOST_DIFFERENCE:
        raise UserError(
            f"{what}: the library gives other vectors: least cosine {agreement.cosine:.6f}, largest"
            f" difference {agreement.difference:.1e} of the largest value (at most"
            f" {MOST_DIFFERENCE:g}). {REMEDY}"
        )
