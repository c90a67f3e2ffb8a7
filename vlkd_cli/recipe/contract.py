"""What a distiller takes, read from the annotations of its methods without importing torch.

The signature `forward(student, teacher, *, ...)` is the contract: the number and shape of the
outputs of each side, whether there is a teacher, and, by the keyword-only names, what else of the
batch it needs.
"""

from __future__ import annotations

import functools
import inspect
import types as python_types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.arrays import Array, Tensor
from vlkd_cli.recipe.params import Method, find_method

Kind = Literal["rows", "positions", "either", "selected"]
_KINDS: dict[tuple[str, ...], Kind] = {
    ("B",): "rows",
    ("B", "T"): "positions",
    ("M",): "selected",
}
WANTED = (
    *("labels", "targets", "caption_keys", "columns", "negatives"),
    *("indices", "samples", "progress"),
)
"""What `forward` may name in addition to its sides."""


class Output(NamedTuple):
    """One tensor of a side.

    "rows" are `[B, D]`, "positions" `[B, T, D]`, "selected" positions `[M, D]`, any number for each
    sample. Outputs of one width have the same letter; `_` is any width.
    """

    kind: Kind
    width: str

    def __str__(self) -> str:
        return {
            "rows": "rows",
            "positions": "positions",
            "either": "rows or positions",
            "selected": "selected positions",
        }[self.kind]

    @property
    def shape(self) -> str:
        """Its shape by its annotation."""
        axes = {"rows": "B", "positions": "B, T", "either": "...", "selected": "M"}
        return f"[{axes[self.kind]}, {self.width}]"


class Form(NamedTuple):
    """One alternative of a side: a single output, a tuple of them, or (repeats) one or more
    alike."""

    outputs: tuple[Output, ...]
    is_tuple: bool = False
    repeats: bool = False

    def fits(self, count: int) -> bool:
        """Whether so many addresses are of this form."""
        return count >= 1 if self.repeats else count == len(self.outputs)

    def of(self, count: int) -> tuple[Output, ...]:
        """The outputs of a side with so many addresses."""
        return self.outputs * count if self.repeats else self.outputs

    @property
    def shape(self) -> str:
        """Its outputs' shapes."""
        shapes = ", ".join(output.shape for output in self.outputs)
        return f"list of {shapes}" if self.repeats else f"({shapes})" if self.is_tuple else shapes

    def __str__(self) -> str:
        if self.repeats:
            return "a list of addresses"
        return "one address" if len(self.outputs) == 1 else f"{len(self.outputs)} addresses"


class Contract(NamedTuple):
    """What a distiller takes.

    Attributes:
        student, teacher: the alternatives of each side of `forward`; none where it has no teacher.
        teacher_is_optional: whether `forward` also runs without a teacher.
        wants: keyword-only names of `forward`, and whether it cannot do without.
        episode: the alternatives of the sides that `start_episode` reads; None without episodes.
        counts_rows: whether `setup` needs the number of rows of the data set.
    """

    student: tuple[Form, ...]
    teacher: tuple[Form, ...]
    teacher_is_optional: bool
    wants: Mapping[str, bool]
    episode: Mapping[str, tuple[Form, ...]] | None
    counts_rows: bool

    @property
    def pairs(self) -> bool:
        """Whether each call takes one output of each side, so that several students are several
        calls."""
        return all(
            len(form.outputs) == 1 and not form.is_tuple and not form.repeats
            for form in (*self.student, *self.teacher)
        )

    def needs_labels(self, num_students: int) -> bool:
        """Whether nothing can be learned without labels."""
        return self.wants.get("labels", False) or self.compares_labels(num_students)

    def compares_labels(self, num_students: int) -> bool:
        """Whether rows of one class are compared and a sample gives one row only, so that without
        labels no two rows belong together."""
        optional = not self.wants.get("labels", True) and not self.takes_teacher
        return optional and num_students == 1

    @property
    def takes_teacher(self) -> bool:
        """Whether a teacher may be written at all."""
        return bool(self.teacher) or "teacher" in (self.episode or ())

    @property
    def needs_teacher(self) -> bool:
        return self.takes_teacher and not self.teacher_is_optional

    def forms(self, side: str) -> tuple[Form, ...]:
        """The alternatives of "student" or "teacher"; of episodes where `forward` has no such
        side."""
        own = self.student if side == "student" else self.teacher
        return own or (self.episode or {}).get(side, ())


def form_for(forms: Sequence[Form], count: int) -> Form | None:
    """The alternative for so many addresses, a single output before a tuple or list of one."""
    fitting = [form for form in forms if form.fits(count)]
    return min(fitting, key=lambda form: form.is_tuple or form.repeats, default=None)


@functools.cache
def wanted_by(forward: Callable[..., object]) -> Mapping[str, bool]:
    """The keyword-only names of a function that is at hand, and whether it cannot do without."""
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


@functools.cache
def contract_of(name: str) -> Contract:
    """The contract of a distiller of the catalogue, or of a third party's `module:Class`.

    Raises:
        RecipeError: no such distiller, or its `forward` has another form.
    """
    forward = find_method("distiller", name, "forward")
    if forward is None:
        raise RecipeError(f"distiller '{name}' has no forward(student, teacher).")
    sides, required = _sides(name, forward)
    if "student" not in sides:
        raise _unreadable(name, forward, "its first argument is not `student`")
    unknown = [key for key in required if key not in WANTED]
    if unknown:
        raise _unreadable(
            name, forward, f"unknown argument '{unknown[0]}'; known: {', '.join(WANTED)}"
        )
    episode = find_method("distiller", name, "start_episode")
    setup = find_method("distiller", name, "setup")
    return Contract(
        student=_forms(sides["student"]),
        teacher=_forms(sides.get("teacher", type(None))),
        teacher_is_optional=_is_optional(sides.get("teacher", type(None))),
        wants=required,
        episode=(
            None
            if episode is None
            else {side: _forms(kind) for side, kind in _sides(name, episode)[0].items()}
        ),
        counts_rows=setup is not None
        and any(argument.arg == "num_rows" for argument in setup.node.args.kwonlyargs),
    )


def _sides(name: str, method: Method) -> tuple[dict[str, object], dict[str, bool]]:
    """The annotations of the sides, and which keyword-only names are required."""
    arguments = method.node.args
    sides = {}
    for argument in [*arguments.posonlyargs, *arguments.args][1:]:
        if argument.arg not in ("student", "teacher"):
            raise _unreadable(
                name,
                method,
                f"'{argument.arg}' is neither a side nor keyword-only. Other arguments go"
                f" after the *: {', '.join(WANTED)}",
            )
        try:
            sides[argument.arg] = (
                Tensor if argument.annotation is None else method.value(argument.annotation)
            )
        except (NameError, AttributeError, TypeError, ValueError) as error:
            raise _unreadable(
                name,
                method,
                f"the annotation of '{argument.arg}' cannot be read ({error}). Write"
                ' Float[Tensor, "B D"], a tuple or Sequence of these, or alternatives with |',
            ) from error
    required = {
        argument.arg: default is None
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }
    return sides, required


def _unreadable(name: str, method: Method, reason: str) -> RecipeError:
    where = f"{method.file.name}:{method.node.lineno}, {method.node.name}"
    return RecipeError(f"distiller '{name}', {where}: {reason}.")


def _forms(annotation: object) -> tuple[Form, ...]:
    """The alternatives of an annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return ()
    if origin in (typing.Union, python_types.UnionType):
        return tuple(form for argument in arguments for form in _forms(argument))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return (Form(tuple(map(_output, arguments)), is_tuple=True),)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return (Form((_output(arguments[0]),), repeats=True),)
    return (Form((_output(annotation),)),)


def _output(annotation: object) -> Output:
    axes: tuple[str, ...] = ("...", "_")
    if isinstance(annotation, type) and issubclass(annotation, Array):
        axes = annotation.axes
    return Output(_KINDS.get(axes[:-1], "either"), axes[-1])


def _is_optional(annotation: object) -> bool:
    return type(None) in typing.get_args(annotation)
