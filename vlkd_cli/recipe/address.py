"""Addresses of tower outputs, and the arrows between them that distillers define.

An address is `tower[.output][@input[.N[-M]]]`: an output is `backbone`, `tokens` or a head (by
default the head called `head`, else the backbone's feature); an input is `main`, another view of
`data.views`, or a named text of the reader; N counts the pictures of a view from 1, and without it
all of them are meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlkd_cli.recipe.contract import Contract, Form, contract_of, form_for
from vlkd_cli.recipe.modality import LEADING, PAIR, is_named
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.types import MODALITY_NAMES, ModalityName

if TYPE_CHECKING:
    from vlkd_cli.recipe.schema import DataSpec, DistillerSpec, Recipe, TowerSpec

MAIN_VIEW = "main"
RESERVED = ("main", "input", "backbone", "tokens", "layers")
"""Names that no view, text or head can have."""

_NAME = r"[^\W\d]\w*"
LAYER = re.compile(r"layers\.(\d+)(\.pooled)?")
"""Outputs of inner layers."""
POOLED = ".pooled"
"""How those end that are one row."""
_OUTPUT = rf"layers\.\d+(?:\.pooled)?|{_NAME}"
_ADDRESS = re.compile(rf"({_NAME})(?:\.({_OUTPUT}))?(?:@({_NAME})(?:\.(\d+)(?:-(\d+))?)?)?")


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
    """What a distiller compares: the calls of one step, whose mean is its term, the sides that it
    reads at the start of an episode, and the negatives of every call."""

    calls: tuple[Call, ...]
    episode: Call | None = None
    negatives: tuple[Address, ...] = ()

    def addresses(self) -> list[Address]:
        """What a step reads, each address once, in order."""
        return list(dict.fromkeys((*self.sides(), *self.negatives)))

    def sides(self) -> list[Address]:
        """What the calls of a step read."""
        return list(dict.fromkeys(address for call in self.calls for address in call.addresses()))

    def episode_addresses(self) -> list[Address]:
        """What the start of an episode reads."""
        return [] if self.episode is None else list(dict.fromkeys(self.episode.addresses()))


class SideError(ValueError):
    """A side of a distiller cannot be inferred or read; `side` is the key of the recipe to
    change."""

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
            f"'{text}' is not an address. Write tower, tower.backbone, tower.tokens,"
            " tower.layers.N, tower.layers.N.pooled or tower.HEAD, then @VIEW or @TEXT for another"
            " input, @VIEW.2 or @VIEW.2-5 for some of its pictures"
        )
    tower, output, input, first, last = match.groups()
    numbers = [None if number is None else int(number) for number in (first, last)]
    if numbers[0] == 0:
        raise ValueError(f"'{text}': pictures count from 1. Write @{input}.1 for the first")
    if numbers[0] is not None and numbers[1] is not None and numbers[1] < numbers[0]:
        raise ValueError(f"'{text}': write the range as {numbers[1]}-{numbers[0]}")
    return Written(tower, output or "head", input or MAIN_VIEW, *numbers)


def layer_of(output: str) -> int:
    """The number of an output that is an inner layer."""
    match = LAYER.fullmatch(output)
    assert match is not None, output
    return int(match.group(1))


def modality_of(towers: Mapping[str, TowerSpec], name: str) -> ModalityName | None:
    """A tower's modality as far as the recipe determines it: `modality:`, else its builder's only
    one, else a word of its name ("teacher_text"), else that of the tower it follows, else the one
    that its builder assumes."""
    tower = towers[name]
    if tower.modality is not None:
        return tower.modality
    offered = attributes_of("builder", tower.builder).get("modalities", ()) if tower.builder else ()
    if len(offered) == 1:
        return next(word for word in MODALITY_NAMES if word in offered)
    words = name.lower().split("_")
    found = next((word for word in MODALITY_NAMES if word in words), None)
    leader = tower.follows
    if found is None and leader is not None and leader in towers and towers[leader].follows is None:
        return modality_of(towers, leader)
    return found or (
        attributes_of("builder", tower.builder).get("assumed_modality") if tower.builder else None
    )


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
    """The named texts that the readers of a recipe offer in addition to the main one."""
    if data is None:
        return []
    entries: list[tuple[str | None, Mapping[str, object]]] = [(data.reader, data.keys)]
    entries += [(entry.get("reader"), entry) for entry in data.readers or []]
    found: dict[str, None] = {}
    for reader, keys in entries:
        texts = keys.get("texts")
        attributes = attributes_of("reader", reader) if reader else {}
        fixed = list(attributes.get("text_views", ()))
        for key, names in attributes.get("text_views_by_key", {}).items():
            fixed += names if keys.get(key) is not None else ()
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
        by_name = written.tower in recipe.towers and is_named(
            modality_of(recipe.towers, written.tower)
        )
        found += written.expand(1 if by_name else pictures_of(recipe.data, written.input))
    return tuple(found)


def arrow_of(recipe: Recipe, spec: DistillerSpec) -> Arrow:
    """The arrow of a distiller: the sides that the recipe writes, else defaults by what the
    distiller takes first.

    A pair of rows: (image, text) learn from (teacher_image, teacher_text). Rows, or a list of them:
    without a teacher the only tower that learns, else the image tower; with one the mesh tower and
    the other, else image and text, of which a frozen one is the teacher. Positions have no default.

    Several students of a distiller that takes one of each are one call each, with as many teachers
    or one for all.

    Raises:
        SideError: a side is not an address, not of a form that the distiller takes, or the recipe
            determines no default.
        RecipeError: no such distiller, or its contract cannot be read.
    """
    contract = contract_of(spec.name)
    if spec.teacher is not None and not contract.takes_teacher:
        raise SideError("teacher", f"distiller '{spec.name}' has no teacher. Remove it")
    student, teacher = (_given(recipe, spec, side) for side in ("student", "teacher"))
    student, teacher = _with_defaults(recipe, contract, student, teacher)
    episode = None
    if contract.episode is not None:
        sides = {"student": student, "teacher": teacher}
        episode = Call(
            *(
                _delivered(spec, side, addresses, contract.episode[side])
                if addresses is not None and side in contract.episode
                else None
                for side, addresses in sides.items()
            )
        )
    if not contract.teacher:
        teacher = None
    if spec.negatives is not None and "negatives" not in contract.wants:
        raise SideError("negatives", f"distiller '{spec.name}' takes no negatives. Remove it")
    negatives = _given(recipe, spec, "negatives") or ()
    if contract.pairs:
        return Arrow(_pairs(student, teacher), episode, negatives)
    call = Call(
        _delivered(spec, "student", student, contract.student),
        None if teacher is None else _delivered(spec, "teacher", teacher, contract.teacher),
    )
    return Arrow((call,), episode, negatives)


def _given(recipe: Recipe, spec: DistillerSpec, side: str) -> tuple[Address, ...] | None:
    written = getattr(spec, side)
    try:
        found = None if written is None else addresses_of(recipe, written)
    except ValueError as error:
        raise SideError(side, str(error)) from error
    if found == ():
        raise SideError(side, "an empty list names no output")
    return found


def _pairs(student: tuple[Address, ...], teacher: tuple[Address, ...] | None) -> tuple[Call, ...]:
    if teacher is None:
        return tuple(Call(one, None) for one in student)
    if len(teacher) not in (1, len(student)):
        raise SideError(
            "teacher",
            f"{len(student)} student{'s' * (len(student) > 1)} and {len(teacher)} teachers do not"
            " pair up. Give one teacher for each student, or one for all",
        )
    teachers = teacher * (len(student) if len(teacher) == 1 else 1)
    return tuple(Call(*pair) for pair in zip(student, teachers, strict=True))


def _delivered(
    spec: DistillerSpec, side: str, addresses: tuple[Address, ...], forms: tuple[Form, ...]
) -> Side:
    """The side as the distiller gets it: a tensor where it takes one, else a tuple."""
    form = form_for(forms, len(addresses))
    if form is None:
        takes = " or ".join(dict.fromkeys(map(str, forms)))
        raise SideError(side, f"distiller '{spec.name}' takes {takes} here, got {len(addresses)}")
    return addresses if form.is_tuple or form.repeats else addresses[0]


def _with_defaults(
    recipe: Recipe,
    contract: Contract,
    student: tuple[Address, ...] | None,
    teacher: tuple[Address, ...] | None,
) -> tuple[tuple[Address, ...], tuple[Address, ...] | None]:
    first = contract.student[0]
    if first.is_tuple and all(output.kind == "rows" for output in first.outputs):
        student = student or _present(recipe, PAIR, "student")
        if teacher is None and contract.needs_teacher:
            teacher = _present(recipe, [f"teacher_{name}" for name in PAIR], "teacher")
        return student, teacher
    for side, given in (("student", student), ("teacher", teacher)):
        kinds = {output.kind for form in contract.forms(side)[:1] for output in form.outputs}
        if given is None and kinds & {"positions", "selected"}:
            raise SideError(
                side, "write its address, such as image.tokens; positions have no default"
            )
    if not contract.teacher:
        student = student or _only_learner(recipe)
        # Features that are clustered between epochs are those of the student.
        return student, teacher or (student if contract.needs_teacher else None)
    return _two_towers(recipe, student, teacher, contract.needs_teacher)


def _only_learner(recipe: Recipe) -> tuple[Address, ...]:
    learners = [
        name
        for name, tower in recipe.towers.items()
        if tower.follows is None and tower.train != "none"
    ]
    image = _only(recipe, PAIR[0])
    if len(learners) != 1 and image is None:
        raise SideError("student", "name the student tower; there are several to choose from")
    return addresses_of(recipe, learners[0] if len(learners) == 1 else str(image))


def _two_towers(
    recipe: Recipe,
    student: tuple[Address, ...] | None,
    teacher: tuple[Address, ...] | None,
    needs_teacher: bool,
) -> tuple[tuple[Address, ...], tuple[Address, ...] | None]:
    """The first tower of a pair is the student unless it alone is frozen, or written as the
    teacher."""
    one, other = _pair_of(recipe)
    if student is None:
        if one is None or other is None:
            raise SideError(
                "student",
                "name the student tower; the recipe does not have exactly one image tower and one"
                " text tower",
            )
        frozen = {name for name in (one, other) if recipe.towers[name].train == "none"}
        flipped = frozen == {one} or (teacher is not None and teacher[0].tower == one)
        student = addresses_of(recipe, other if flipped else one)
    if teacher is None and needs_teacher:
        # A follower next to the tower that it follows does not count as a second tower.
        learners = {_followed(recipe, address.tower) for address in student}
        found = other if learners == {one} else one
        if found is None or len(learners) > 1:
            raise SideError("teacher", "name the teacher tower")
        teacher = addresses_of(recipe, found)
    return student, teacher


def _followed(recipe: Recipe, name: str) -> str:
    tower = recipe.towers.get(name)
    return name if tower is None or tower.follows is None else tower.follows


def _pair_of(recipe: Recipe) -> tuple[str | None, str | None]:
    """The mesh tower and the only other one, else the image and the text tower."""
    mesh = _only(recipe, LEADING)
    others = [name for name, tower in recipe.towers.items() if name != mesh and not tower.follows]
    if mesh is not None and len(others) == 1:
        return mesh, others[0]
    return _only(recipe, PAIR[0]), _only(recipe, PAIR[1])


def _only(recipe: Recipe, modality: ModalityName) -> str | None:
    """The tower called like the modality, else the only tower of that modality."""
    if modality in recipe.towers:
        return modality
    found = [
        name
        for name, tower in recipe.towers.items()
        if tower.follows is None and modality_of(recipe.towers, name) == modality
    ]
    return found[0] if len(found) == 1 else None


def _present(recipe: Recipe, towers: Sequence[str], side: str) -> tuple[Address, ...]:
    missing = [name for name in towers if name not in recipe.towers]
    if missing:
        raise SideError(
            side,
            f"by default {' and '.join(towers)}, but the recipe has no tower '{missing[0]}'",
        )
    return addresses_of(recipe, towers)
