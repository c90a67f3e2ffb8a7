"""What a head that was trained on pixels paints, as pictures: `vlkd encode --pictures DIR`."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.masks import Mask
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import UserError
from vlkd_cli.heads.patches import PatchHead
from vlkd_cli.preprocessing import ImageInput, standardize
from vlkd_cli.recipe.address import Address, arrow_of
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.masks import mask_of
from vlkd_cli.recipe.objectives import head_of
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.towers.tower import Tower

READ_AT_ONCE = 64


class Painter(NamedTuple):
    """A tower whose output has pixels as its target.

    Args:
        patches: the target: the pixels of each position, perhaps standardized by position.
        mask: what hid positions in training; None: nothing did.
    """

    tower: Tower
    output: str
    patches: PatchHead
    mask: Mask | None

    def paint(self, image: Tensor, seed: int) -> Tensor:
        """A picture `[3, H, W]` with the painted positions in place of its own, values 0 to 1.

        Args:
            image: `[3, H, W]`, uint8 or standardized.
            seed: of its mask.
        """
        expected: ImageInput = self.tower.input
        picture = standardize(image[None], expected)
        hidden = None if self.mask is None else self.mask(random.Random(seed))[None]
        hidden = None if hidden is None else hidden.to(image.device)
        with torch.no_grad():
            painted = self.tower.outputs(picture, [self.output], hidden)[self.output].float()
        (rows,) = self.patches.split(picture)
        at = self.tower.graph.at(self.output)
        chosen = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        if hidden is not None and at != "all":
            chosen = hidden[0] if at == "hidden" else ~hidden[0]
        painted = painted.flatten(0, -2)
        if self.patches.normalize:
            mean, std = self.patches.statistics(rows[chosen])
            painted = painted * std + mean
        rows[chosen] = painted
        (whole,) = self.patches.join(rows[None], picture.shape[-2:])
        return _pixels(whole, expected)


def find_painter(recipe: Recipe, towers: Mapping[str, Tower], name: str, output: str) -> Painter:
    """The tower called `name` with an output that a distiller compares with pixels.

    Raises:
        UserError: none does.
    """
    for spec in recipe.distillers:
        for student, teacher in arrow_of(recipe, spec).calls:
            if not (isinstance(student, Address) and isinstance(teacher, Address)):
                continue
            head = head_of(recipe.towers, teacher)
            if student[:2] == (name, output) and head is not None and head.name == "patches":
                patches = towers[teacher.tower].parts()[teacher.output].module
                assert isinstance(patches, PatchHead)
                mask = _mask(recipe, towers[name], student.input)
                return Painter(towers[name], output, patches, mask)
    raise UserError(
        f"--pictures: no distiller compares '{output}' of tower '{name}' with a head 'patches', so"
        " that it paints no pixels. Choose another --output, or leave --pictures out."
    )


def write_pictures(
    painter: Painter, reader: Reader, rows: Sequence[int], ids: Sequence[str], folder: Path
) -> None:
    """A PNG file for each of these samples, called by its row and id.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row, name, image in zip(rows, ids, _images(painter.tower, reader, rows), strict=True):
            pixels = painter.paint(image, seed=row).mul(255).round().to(torch.uint8)
            stem = re.sub(r"[^\w-]+", "_", Path(name).stem)[:80]
            file = folder / f"{row:06}_{stem}.png"
            Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(file)
    except OSError as error:
        raise UserError(
            f"--pictures {folder} cannot be written: {error.strerror or error}. Free space or name"
            " another folder."
        ) from error


def _images(tower: Tower, reader: Reader, rows: Sequence[int]) -> Iterator[Tensor]:
    views = {tower.name: MODALITIES[tower.modality].view(tower.input, None, None)}
    device = next(tower.encoder.parameters()).device
    for batch in in_order(reader, views, rows, batch_size=READ_AT_ONCE):
        images = batch.to(device).inputs[tower.name]
        assert isinstance(images, Tensor)
        yield from images


def _mask(recipe: Recipe, tower: Tower, view: str) -> Mask | None:
    spec = mask_of(recipe.data, view)
    if spec is None or spec.mask is None or not tower.reads_hidden:
        return None
    mask: Mask = make(
        "mask", spec.mask.name, spec.mask.keys, tower.encoder.grid(tower.input.size_px)
    )
    return mask


def _pixels(picture: Tensor, expected: ImageInput) -> Tensor:
    """A standardized picture with values 0 to 1, red first."""
    mean, std = (picture.new_tensor(part)[:, None, None] for part in (expected.mean, expected.std))
    pixels = (picture * std + mean).clamp(0, 1)
    return pixels.flip(0) if expected.channels == "bgr" else pixels
