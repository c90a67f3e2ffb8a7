"""Stand-ins for jaxtyping's array annotations, so that a signature can be read without torch."""

from __future__ import annotations

from typing import Any


class Array:
    """What `Float[Tensor, "B D"]` becomes: a type that knows its axes."""

    axes: tuple[str, ...]


class Tensor(Array):
    """A tensor of any shape."""

    axes = ("...", "_")


class _OfShape(type):
    def __getitem__(cls, item: tuple[Any, str]) -> type[Array]:
        _, shape = item
        return type("Array", (Array,), {"axes": tuple(shape.split())})


class Float(metaclass=_OfShape):
    """`Float[Tensor, "B D"]`; `Int` and `Bool` alike."""


ARRAY_NAMES: dict[str, type] = {"Tensor": Tensor, "Float": Float, "Int": Float, "Bool": Float}
"""The names under which annotations find them."""
