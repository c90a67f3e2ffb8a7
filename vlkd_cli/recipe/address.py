"""Addresses of tower outputs, `tower[.backbone|.head][@view]`, and the defaults that keep two-tower
recipes free of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from vlkd_cli.recipe.schema import DistillerSpec, Recipe

MAIN_VIEW = "main"


class Address(NamedTuple):
    """One output of one tower on one view of the samples."""

    tower: str
    output: Literal["backbone", "head"] = "head"
    view: str = MAIN_VIEW

    @property
    def input_key(self) -> str:
        """The key of `Batch.inputs` that this tower reads for this view."""
        return self.tower if self.view == MAIN_VIEW else f"{self.tower}@{self.view}"

    def __str__(self) -> str:
        return (
            self.input_key
            if self.output == "head"
            else f"{self.tower}.{self.output}" + self.input_key.removeprefix(self.tower)
        )


class Arrow(NamedTuple):
    """What a distiller compares; a side is one address, several, or (teacher only) nothing."""

    student: Address | tuple[Address, ...]
    teacher: Address | tuple[Address, ...] | None

    def addresses(self) -> list[Address]:
        """All addresses of both sides."""
        sides = [self.student, self.teacher]
        return [
            address
            for side in sides
            if side is not None
            for address in ([side] if isinstance(side, Address) else side)
        ]


def parse_address(text: str) -> Address:
    """Read `tower`, `tower.backbone`, `tower.head`, each with an optional `@view`.

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch(r"(\w+)(?:\.(backbone|head))?(?:@(\w+))?", text)
    if match is None:
        raise ValueError(
            f"'{text}' is no address. Write tower, tower.backbone or tower.head, with @view where"
            " it has several views"
        )
    tower, output, view = match.groups()
    return Address(tower, "backbone" if output == "backbone" else "head", view or MAIN_VIEW)


def modality_of(name: str, declared: str | None = None) -> Literal["image", "text"] | None:
    """A tower's modality: as declared, or as its name tells ("image", "teacher_text",
    "text_momentum")."""
    if declared is not None:
        return "image" if declared == "image" else "text"
    parts = name.lower().split("_")
    for modality in ("image", "text"):
        if modality in parts:
            return "image" if modality == "image" else "text"
    return None


def arrow_of(
    recipe: Recipe, spec: DistillerSpec, takes: str = "one", needs_teacher: bool = True
) -> Arrow:
    """The arrow of a distiller: what the recipe says, or the default for what the distiller takes.

    "one": the image tower is the student and the text tower the teacher; where only one of the two
    is frozen, that one is the teacher.
    "pair": (image, text) learn from (teacher_image, teacher_text). "views": all views of the image
    tower on both sides.

    Raises:
        ValueError: a default is needed and the towers do not offer it; the message says which
            address to write.
    """

    def given(side: str | list[str] | None) -> Address | tuple[Address, ...] | None:
        if side is None:
            return None
        return (
            parse_address(side)
            if isinstance(side, str)
            else tuple(parse_address(part) for part in side)
        )

    student, teacher = given(spec.student), given(spec.teacher)
    if takes == "pair":
        pair = (Address("image"), Address("text"))
        student = student or _present(recipe, pair, "student")
        if teacher is None and needs_teacher:
            teacher = _present(
                recipe, (Address("teacher_image"), Address("teacher_text")), "teacher"
            )
        return Arrow(student, teacher)
    image, text = _only(recipe, "image"), _only(recipe, "text")
    if takes == "views":
        if student is None:
            name = image or text or next(iter(recipe.towers))
            student = tuple(
                Address(name, "head", view)
                for view in (MAIN_VIEW, *(recipe.data.views if recipe.data else ()))
            )
        return Arrow(student, teacher if teacher is not None or not needs_teacher else student)
    if student is None:
        if image is None or text is None:
            raise ValueError(
                "student: say which tower learns; there is no single image tower and single text"
                " tower to choose from"
            )
        frozen = {name for name in (image, text) if recipe.towers[name].train == "none"}
        flipped = frozen == {image} or (teacher == Address(image))
        student = Address(text if flipped else image)
    if teacher is None and needs_teacher:
        learner = student if isinstance(student, Address) else student[0]
        other = text if learner.tower == image else image
        if other is None:
            raise ValueError("teacher: say which tower is the teacher")
        teacher = Address(other)
    return Arrow(student, teacher)


def _only(recipe: Recipe, modality: str) -> str | None:
    """The tower called like the modality, else the only tower of that modality."""
    if modality in recipe.towers:
        return modality
    found = [
        name
        for name, tower in recipe.towers.items()
        if modality_of(name, tower.modality) == modality
    ]
    return found[0] if len(found) == 1 else None


def _present(recipe: Recipe, addresses: tuple[Address, ...], side: str) -> tuple[Address, ...]:
    missing = [address.tower for address in addresses if address.tower not in recipe.towers]
    if missing:
        raise ValueError(
            f"{side}: by default {' and '.join(map(str, addresses))}, but the recipe has no tower"
            f" '{missing[0]}'"
        )
    return addresses
