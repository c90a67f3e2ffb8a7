"""What an objective asks of the towers along its arrow, as far as the recipe alone can tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import Address, Arrow, Side, modality_of
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.params import REQUIRED, attributes_of, signature_of
from vlkd_cli.recipe.schema import Component, DistillerSpec, Recipe


def check_objective(
    recipe: Recipe, spec: DistillerSpec, arrow: Arrow, path: Path
) -> Iterator[Problem]:
    """Problems of an arrow whose addresses are right: too many outputs, an order that differs,
    widths that differ, prototypes twice."""
    said = attributes_of("distiller", spec.name)
    call = arrow.calls[0]
    sides = {"student": _listed(call.student), "teacher": _listed(call.teacher)}
    for (side, addresses), most in zip(sides.items(), said.get("most_outputs") or (), strict=False):
        if len(addresses) > most:
            takes = f"at most {most} addresses" if most > 1 else "one address"
            yield Problem(
                (*path, side), f"distiller '{spec.name}' takes {takes} here, got {len(addresses)}."
            )
    if said.get("takes") == "pair":
        yield from _check_order(recipe, sides, path)
    if "equal_width" in said.get("needs", ()):
        for call in arrow.calls:
            compared = {"student": _listed(call.student), "teacher": _listed(call.teacher)}
            yield from _check_widths(recipe, spec, compared, path)
    if (
        "prototypes" in said.get("needs", ())
        and _setting("distiller", spec, "prototypes") is not None
    ):
        owner = next(
            (
                address.tower
                for side in sides.values()
                for address in side
                if _has_prototypes(recipe, address)
            ),
            None,
        )
        if owner is not None:
            text = (
                f"tower '{owner}' has prototypes of its own. Say prototypes: null, or give the"
                " towers head 'mlp'."
            )
            yield Problem((*path, "prototypes"), text)


def _check_order(
    recipe: Recipe, sides: dict[str, tuple[Address, ...]], path: Path
) -> Iterator[Problem]:
    said = {
        side: [modality_of(recipe.towers, address.tower) for address in addresses[:2]]
        for side, addresses in sides.items()
    }
    if set(said["student"]) == {"image", "text"} and said["teacher"] == said["student"][::-1]:
        text = (
            f"names {' and '.join(map(str, said['teacher']))}, the student"
            f" {' and '.join(map(str, said['student']))}. Use one order."
        )
        yield Problem((*path, "teacher"), text)


def _check_widths(
    recipe: Recipe, spec: DistillerSpec, sides: dict[str, tuple[Address, ...]], path: Path
) -> Iterator[Problem]:
    for ours in sides["student"]:
        for theirs in sides["teacher"]:
            our_width, their_width = _width(recipe, ours), _width(recipe, theirs)
            if our_width is not None and their_width is not None and our_width != their_width:
                key = "prototypes" if _has_prototypes(recipe, ours) else "width"
                yield Problem(
                    path,
                    f"tower '{theirs.tower}' embeds {their_width} values, tower '{ours.tower}'"
                    f" {our_width}, and distiller '{spec.name}' compares them directly. Set `{key}:"
                    f" {their_width}` in the head of '{ours.tower}'.",
                )
                return


def _listed(side: Side | None) -> tuple[Address, ...]:
    if side is None:
        return ()
    return (side,) if isinstance(side, Address) else side


def _head(recipe: Recipe, address: Address) -> Component | None:
    """The head whose output an address names; a tower that follows another has that one's."""
    tower = recipe.towers[address.tower]
    tower = recipe.towers.get(tower.follows or "", tower)
    return tower.all_heads.get(address.output)


def _has_prototypes(recipe: Recipe, address: Address) -> bool:
    head = _head(recipe, address)
    return head is not None and head.name == "prototypes"


def _width(recipe: Recipe, address: Address) -> int | None:
    """Width of an output, where a head tells it."""
    head = _head(recipe, address)
    width = (
        None
        if head is None
        else _setting("head", head, "prototypes" if head.name == "prototypes" else "width")
    )
    return width if isinstance(width, int) else None


def _setting(kind: str, component: Component, name: str) -> Any:
    """A component's key as written, or its default; None where it has neither."""
    try:
        default = next(
            (key.default for key in signature_of(kind, component.name).keys if key.name == name),
            None,
        )
    except RecipeError:
        return None
    value = component.keys.get(name, default)
    return None if value is REQUIRED else value
