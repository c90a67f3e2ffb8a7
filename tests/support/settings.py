"""What a setting may be changed to, and what a component made of it consists of."""

from __future__ import annotations

import ast
import functools
import hashlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

import vlkd_cli
from vlkd_cli.recipe.messages import is_data_source
from vlkd_cli.recipe.params import Key
from vlkd_cli.recipe.types import Schedule

NUMBERS = [2, 1, 3, 4, 0, 0.5, 0.25, 0.9, 1.5, 8, 16, 100, -1, 7, 1e-3]


def other_values(key: Key) -> Iterator[Any]:
    """Values that the key's type takes, its default left out; the likeliest to matter first."""
    adapter: TypeAdapter[Any] = TypeAdapter(key.annotation)
    default = None if key.required else key.default
    for value in _candidates(key.annotation):
        if value == default and type(value) is type(default):
            continue
        try:
            adapter.validate_python(value)
        except ValidationError:
            continue
        yield value


def _candidates(annotation: Any) -> Iterator[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_data_source(annotation):
        yield {"reader": "shapes", "num_samples": 3, "size_px": 16}
    elif origin is typing.Annotated:
        yield from _candidates(arguments[0])
    elif origin in (typing.Union, types.UnionType):
        for part in arguments:
            if part is not type(None):
                yield from _candidates(part)
        if type(None) in arguments:
            yield None
    elif origin is typing.Literal:
        yield from arguments
    elif annotation is bool:
        yield from (True, False)
    elif annotation in (int, float):
        yield from NUMBERS
    elif annotation is str:
        yield from ("x", "1", "text", "k")
    elif annotation is Schedule:
        yield {"linear": [0.5, 0.6]}
    elif origin in (list, tuple, Sequence):
        inner = [part for part in arguments if part is not Ellipsis]
        if origin is tuple and len(inner) > 1:
            for number in (0.1, 0.5, 1, 2):
                yield [number] * len(inner)
            yield [0.1 * (place + 1) for place in range(len(inner))]
        else:
            for value in _candidates(inner[0]):
                yield [value]
    elif origin is dict or annotation is dict or origin is Mapping:
        yield {"x": "y"}
    else:
        yield from ("x", 2, True, [1])


# -- what a component consists of ------------------------------------------------------------------


def parts_of(component: Any) -> dict[str, str]:
    """A digest of each attribute; of a network also of its weights and of every module's own
    settings, so that dropout and modes count."""
    if isinstance(component, torch.nn.Module):
        return {
            **{name: digest(value) for name, value in component.state_dict().items()},
            "trainable": repr([(n, p.requires_grad) for n, p in component.named_parameters()]),
            **{
                f"{place}.{name}".lstrip("."): digest(value)
                for place, module in component.named_modules()
                for name, value in vars(module).items()
                if not name.startswith("_")
            },
            "modules": repr(component),
        }
    return {name: digest(value) for name, value in vars(component).items()}


def digest(value: Any, depth: int = 0) -> str:
    """Equal for equal values, also for functions with equal closures."""
    if depth > 6:
        return type(value).__name__
    inner = functools.partial(digest, depth=depth + 1)
    if isinstance(value, torch.Tensor):
        if value.is_meta:
            return f"meta{tuple(value.shape)}"
        return hashlib.sha256(
            repr((tuple(value.shape), str(value.dtype))).encode()
            + value.detach().cpu().contiguous().float().numpy().tobytes()
        ).hexdigest()
    if isinstance(value, np.ndarray):
        return f"{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, torch.nn.Module):
        return repr(sorted(parts_of(value).items()))
    if isinstance(value, Mapping):
        return repr([(str(key), inner(item)) for key, item in value.items()])
    if isinstance(value, list | tuple | set | frozenset):
        return repr([inner(item) for item in value])
    if isinstance(value, functools.partial):
        return inner((value.func, value.args, value.keywords))
    if callable(value) and hasattr(value, "__code__"):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{value.__qualname__}{inner(cells)}"
    if hasattr(value, "__dict__") and type(value).__module__.startswith("vlkd_cli"):
        return f"{type(value).__name__}{inner(vars(value))}"
    if hasattr(value, "settings"):
        return inner(value.settings)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


@functools.cache
def names_read() -> frozenset[str]:
    """Every attribute that the package reads anywhere but where it is set."""
    found = set()
    for path in Path(vlkd_cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                # getattr(tower, "masks")
                found.add(node.value)
    return frozenset(found)
