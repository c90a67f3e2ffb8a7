"""Addresses of tower outputs, and the arrows that distillers draw between them.

An address is `tower[.output][@input[.N[-M]]]`: an output is `backbone`, `tokens` or a head (by
default the head called `head`, else the backbone's feature); an input is `main`, another view of
`data.views`, or a named text of the reader; N counts the pictures of a view from 1, and without it
all of them are meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.types import MODALITY_NAMES, ModalityName

if TYPE_CHECKING:
    from vlkd_cli.recipe.schema import DataSpec, DistillerSpec, Recipe, TowerSpec

MAIN_VIEW = "main"
RESERVED = ("main", "input", "backbone", "tokens")
"""Names that no view, text or head can have."""

_NAME = r"[^\W\d]\w*"
_ADDRESS = re.compile(rf"({_NAME})(?:\.({_NAME}))?(?:@({_NAME})(?:\.(\d+)(?:-(\d+))?)?)?")


class Address(NamedTuple):
    """One output of one tower on one picture of one input of the samples."""

    tower: str
    output: str = "head"
    input: str = MAIN_VIEW
    picture: int = 1
    """Counts from 1; 1 where the input has no more."""

    @property
    def input_key(self) -> str:
        """The key of `Batch.inputs` that this tower reads for this input."""
        return self.tower if self.input == MAIN_VIEW else f"{self.tower}@{self.input}"

    def __str__(self) -> str:
        output = "" if self.output == "head" else f".{self.output}"
        if self.picture > 1:
            return f"{self.tower}{output}@{self.input}.{self.picture}"
        return self.tower + output + self.input_key.removeprefix(self.tower)


class Written(NamedTuple):
    """An address as a recipe writes it; without `first` it means every picture of the input."""

    tower: str
    output: str = "head"
    input: str = MAIN_VIEW
    first: int | None = None
    last: int | None = None

    def expand(self, pictures: int = 1) -> tuple[Address, ...]:
        """One address for each picture that is meant, of an input with so many pictures."""
        first = 1 if self.first is None else self.first
        last = pictures if self.first is None else self.last or first
        return tuple(
            Address(self.tower, self.output, self.input, picture)
            for picture in range(first, last + 1)
        )


Side = Address | tuple[Address, ...]
"""One address, delivered as a tensor, or several, delivered as a tuple of tensors."""


class Call(NamedTuple):
    """The sides of one call of a distiller; None where it has no such side."""

    student: Side | None
    teacher: Side | None

    def addresses(self) -> Iterator[Address]:
        """The addresses of both sides, the student's first."""
        for side in self:
            # An address is itself a tuple, so it is asked for first.
            if isinstance(side, Address):
                yield side
            elif side is not None:
                yield from side


class Arrow(NamedTuple):
    """What a distiller compares: the calls of one step, whose mean is its term, and the sides that
    it reads at the start of an episode."""

    calls: tuple[Call, ...]
    episode: Call | None = None

    def addresses(self) -> list[Address]:
        """What a step reads, each address once, in order."""
        return list(dict.fromkeys(address for call in self.calls for address in call.addresses()))

    def episode_addresses(self) -> list[Address]:
        """What the start of an episode reads."""
        return [] if self.episode is None else list(dict.fromkeys(self.episode.addresses()))


class SideError(ValueError):
    """A side of a distiller cannot be told or read; `side` is the key of the recipe to change."""

    def __init__(self, side: str, text: str) -> None:
        super().__init__(text)
        self.side = side


def parse_address(text: str) -> Written:
    """Read `tower[.output][@input[.N[-M]]]`.

    Raises:
        ValueError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(
            f"'{text}' is not an address. Write tower, tower.backbone, tower.tokens or tower.HEAD,"
            " then @VIEW or @TEXT for another input, @VIEW.2 or @VIEW.2-5 for some of its pictures"
        )
    tower, output, input, first, last = match.groups()
    numbers = [None if number is None else int(number) for number in (first, last)]
    if numbers[0] == 0:
        raise ValueError(f"'{text}': pictures count from 1. Write @{input}.1 for the first")
    if numbers[0] is not None and numbers[1] is not None and numbers[1] < numbers[0]:
        raise ValueError(f"'{text}': write the range as {numbers[1]}-{numbers[0]}")
    return Written(tower, output or "head", input or MAIN_VIEW, *numbers)


def modality_of(towers: Mapping[str, TowerSpec], name: str) -> ModalityName | None:
    """A tower's modality as far as the recipe tells: `modality:`, else its builder's only one, else
    a word of its name ("teacher_text"), else that of the tower it follows."""
    tower = towers[name]
    if tower.modality is not None:
        return tower.modality
    offered = attributes_of("builder", tower.builder).get("modalities", ()) if tower.builder else ()
    if len(offered) == 1:
        return next(word for word in MODALITY_NAMES if word in offered)
    words = name.lower().split("_")
    found = next((word for word in MODALITY_NAMES if word in words), None)
    if found is None and tower.follows in towers and towers[tower.follows].follows is None:
        return modality_of(towers, tower.follows)
    return found


def pictures_of(data: DataSpec | None, view: str = MAIN_VIEW) -> int:
    """How many pictures of a sample a view holds: its copies times those of its augmentation.

    A view written as null is one more picture with the augmentation of `data.augment`, without its
    copies.
    """
    if data is None:
        return 1
    own = data.augment if view == MAIN_VIEW else data.views.get(view)
    augment = own or data.augment
    if augment is None:
        return 1
    by_augment = attributes_of("augment", augment.name).get("pictures", 1)
    return int(by_augment) * (1 if own is None else own.copies)


def text_names(data: DataSpec | None) -> list[str]:
    """The named texts that the readers of a recipe offer beside the main one."""
    if data is None:
        return []
    entries: list[tuple[str | None, Mapping[str, Any]]] = [(data.reader, data.keys)]
    entries += [(entry.get("reader"), entry) for entry in data.readers or []]
    found: dict[str, None] = {}
    for reader, keys in entries:
        texts = keys.get("texts")
        fixed = attributes_of("reader", reader).get("text_views", ()) if reader else ()
        found |= dict.fromkeys([*(texts if isinstance(texts, Mapping) else ()), *fixed])
    return list(found)


def addresses_of(recipe: Recipe, side: str | Sequence[str]) -> tuple[Address, ...]:
    """The addresses of a written side, one for each picture that is meant.

    Raises:
        ValueError: one of them is not an address.
    """
    found: list[Address] = []
    for text in [side] if isinstance(side, str) else side:
        written = parse_address(text)
        reads_text = written.tower in recipe.towers and (
            modality_of(recipe.towers, written.tower) == "text"
        )
        found += written.expand(1 if reads_text else pictures_of(recipe.data, written.input))
    return tuple(found)


def arrow_of(recipe: Recipe, spec: DistillerSpec) -> Arrow:
    """The arrow of a distiller: the sides that the recipe writes, else the defaults for what it
    takes.

    A pair: (image, text) learn from (teacher_image, teacher_text). Otherwise the image tower is the
    student and the text tower the teacher, the other way round where only the image tower is
    frozen.

    Several students of a distiller that takes one of each are one call each, with as many teachers
    or one for all.

    Raises:
        SideError: a side is not an address, or the recipe does not tell a default.
    """
    said = attributes_of("distiller", spec.name)
    is_pair = said.get("takes") == "pair"
    needs_teacher = said.get("needs_teacher", True)
    student, teacher = (_given(recipe, spec, side) for side in ("student", "teacher"))
    if is_pair:
        student = student or _present(recipe, ("image", "text"), "student")
        if teacher is None and needs_teacher:
            teacher = _present(recipe, ("teacher_image", "teacher_text"), "teacher")
    else:
        student, teacher = _two_towers(recipe, student, teacher, needs_teacher)
    if is_pair or said.get("takes_lists"):
        call = Call(_delivered(student), None if teacher is None else _delivered(teacher))
        return Arrow((call,), call if "episode" in said.get("needs", ()) else None)
    if teacher is None:
        return Arrow(tuple(Call(one, None) for one in student))
    if len(teacher) not in (1, len(student)):
        raise SideError(
            "teacher",
            f"{len(student)} student{'s' * (len(student) > 1)} and {len(teacher)} teachers do not"
            " pair up. Give one teacher for each student, or one for all",
        )
    teachers = teacher * (len(student) if len(teacher) == 1 else 1)
    return Arrow(tuple(Call(*pair) for pair in zip(student, teachers, strict=True)))


def _given(recipe: Recipe, spec: DistillerSpec, side: str) -> tuple[Address, ...] | None:
    written = getattr(spec, side)
    try:
        return None if written is None else addresses_of(recipe, written)
    except ValueError as error:
        raise SideError(side, str(error)) from error


def _delivered(side: tuple[Address, ...]) -> Side:
    return side[0] if len(side) == 1 else side


def _two_towers(
    recipe: Recipe,
    student: tuple[Address, ...] | None,
    teacher: tuple[Address, ...] | None,
    needs_teacher: bool,
) -> tuple[tuple[Address, ...], tuple[Address, ...] | None]:
    image, text = _only(recipe, "image"), _only(recipe, "text")
    if student is None:
        if image is None or text is None:
            raise SideError(
                "student",
                "say which tower learns; there is no single image tower and single text tower to"
                " choose from",
            )
        frozen = {name for name in (image, text) if recipe.towers[name].train == "none"}
        flipped = frozen == {image} or (teacher is not None and teacher[0].tower == image)
        student = addresses_of(recipe, text if flipped else image)
    if teacher is None and needs_teacher:
        learners = {address.tower for address in student}
        other = text if learners == {image} else image
        if other is None or len(learners) > 1:
            raise SideError("teacher", "say which tower is the teacher")
        teacher = addresses_of(recipe, other)
    return student, teacher


def _only(recipe: Recipe, modality: ModalityName) -> str | None:
    """The tower called like the modality, else the only tower of that modality."""
    if modality in recipe.towers:
        return modality
    found = [name for name in recipe.towers if modality_of(recipe.towers, name) == modality]
    return found[0] if len(found) == 1 else None


def _present(recipe: Recipe, towers: tuple[str, ...], side: str) -> tuple[Address, ...]:
    missing = [name for name in towers if name not in recipe.towers]
    if missing:
        raise SideError(
            side,
            f"by default {' and '.join(towers)}, but the recipe has no tower '{missing[0]}'",
        )
    return addresses_of(recipe, towers)
