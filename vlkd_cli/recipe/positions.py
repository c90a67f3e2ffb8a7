"""Which positions of a masked view an output has a row for, and sides that have rows for others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

from vlkd_cli.recipe.address import Address, Arrow
from vlkd_cli.recipe.masks import mask_of
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.objectives import gives_positions
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import Recipe

Positions = Literal["all", "hidden", "visible"]
_OF_TOKENS: dict[str, Positions] = {"drop": "visible", "complement": "hidden"}


def check_positions(recipe: Recipe, arrow: Arrow, path: Path) -> Iterator[Problem]:
    """Sides of which one has rows for hidden positions and the other for visible ones or for all:
    where their numbers happen to be equal, rows of different positions would be compared."""
    for call in arrow.calls:
        if not (isinstance(call.student, Address) and isinstance(call.teacher, Address)):
            continue
        ours, theirs = (positions_of(recipe, side) for side in (call.student, call.teacher))
        if None not in (ours, theirs) and ours != theirs:
            yield Problem(
                (*path, "teacher"),
                f"'{call.teacher}' has rows for {_named(theirs)}, and the student"
                f" '{call.student}' for {_named(ours)}. Give both the same `at:`.",
            )
            return


def positions_of(recipe: Recipe, address: Address) -> Positions | None:
    """The positions that an output has rows for; None where its view has no mask, where it is one
    row, or where a head decides that the recipe does not tell of."""
    if mask_of(recipe.data, address.input) is None:
        return None
    tower = recipe.towers[address.tower]
    heads = recipe.towers.get(tower.follows or "", tower).all_heads
    name, seen = address.output, set[str]()
    while name in heads and name not in seen:
        seen.add(name)
        head = heads[name]
        if head.at != "all":
            return head.at
        if gives_positions(head.name):
            gives = attributes_of("head", head.name).get("gives_at")
            if gives in ("all", "hidden", "visible"):
                return cast(Positions, gives)
            return "all" if head.reads == "input" else None
        if not isinstance(head.reads, str):
            return None
        name = head.reads.partition(".")[0]
    if name == "input":
        return "all"
    return _OF_TOKENS.get(tower.masks, "all") if name == "tokens" else None


def _named(positions: Positions | None) -> str:
    return "all positions" if positions == "all" else f"the {positions} positions"
