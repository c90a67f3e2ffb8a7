"""A tower whose output `head` is something else that it gives: its first values, or another of its
outputs. What reads `head` needs no case of its own for either."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.address import LAYER
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.towers.named_modules import NamedModules
from vlkd_cli.towers.outputs import BACKBONE, HEAD, TOKENS, Head, Outputs, Source

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

OWN = "uncut head"
"""What the tower's head called `head` is called where another has its name; digests contain it."""


class First(nn.Module):
    """The first values of each item; rows of positions are one after another."""

    has_weights = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, rows: Float[Tensor, "B *T D"]) -> Float[Tensor, "B E"]:
        return rows.flatten(1)[:, : self.width]


def at_width(tower: Tower, width: int) -> Tower:
    """See `Tower.at_width`."""
    if width > tower.width:
        raise RecipeError(
            f"tower '{tower.name}' gives {tower.width} values, fewer than width {width}."
        )
    twin = _with_head(tower, First(width), HEAD)
    twin.cut = width
    return twin


def at_output(tower: Tower, output: str) -> Tower:
    """See `Tower.at_output`."""
    if output == HEAD:
        return tower
    known = [BACKBONE, *([TOKENS] if tower.encoder.token_width else []), *tower.graph.links, HEAD]
    if output not in known and not LAYER.fullmatch(output):
        known = list(dict.fromkeys(known))
        raise RecipeError(
            f"tower '{tower.name}' has no output '{output}'.{did_you_mean(output, known)} Outputs:"
            f" {', '.join(known)}."
        )
    positions = None if tower.graph.is_row(output) else _positions(tower, output)
    twin = _with_head(tower, First((positions or 1) * tower.width_of(output)), output)
    twin.positions, twin.passed_on = positions, output
    return twin


def _with_head(tower: Tower, module: nn.Module, reads: str) -> Tower:
    """A tower with this head over an output; it shares all other parts."""
    parts = {
        name: part._replace(
            reads=tuple(
                each._replace(output=OWN) if each.output == HEAD else each for each in part.reads
            )
        )
        for name, part in tower.parts().items()
    }
    own = parts.pop(HEAD, None)
    if own is not None:
        parts[OWN] = own
    if reads == HEAD:
        reads = BACKBONE if own is None else OWN
    parts[HEAD] = Head(module, (Source(reads),))
    twin = copy.copy(tower)
    twin._modules = dict(tower._modules)
    twin.graph, twin.head = Outputs(parts), module
    twin.heads = NamedModules({key: one.module for key, one in parts.items() if key != HEAD})
    modules = dict(twin.named_modules())
    twin._held = [name for name in tower._held if name in modules]
    return twin


def _positions(tower: Tower, output: str) -> int:
    """How many rows an output has for each input, seen from one picture."""
    if not isinstance(tower.input, ImageInput):
        raise RecipeError(
            f"tower '{tower.name}': '{output}' has a row for each position, whose number differs"
            f" between {FACTS[tower.modality].plural}. Choose an output of rows."
        )
    device = next(tower.encoder.parameters()).device
    picture = torch.zeros(1, 3, *tower.input.size_px, dtype=torch.uint8, device=device)
    was_training = tower.training
    try:
        with torch.no_grad():
            return tower.eval().encode(picture, output).shape[1]
    except ValueError as error:
        raise RecipeError(
            f"tower '{tower.name}': '{output}' needs a mask, and nothing is hidden here ({error})."
        ) from error
    finally:
        tower.train(was_training)
