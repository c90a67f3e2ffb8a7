"""Which optimizers there are and which keys each takes, read from the libraries' source without
importing it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.params import REQUIRED, Key, module_file

# timm's, because torch has none.
ELSEWHERE = {"lars": ("timm.optim.lars", "Lars"), "lion": ("timm.optim.lion", "Lion")}
# A closure, sparse gradients, and matrices only: what a training step here does not give.
UNUSABLE = frozenset({"lbfgs", "sparseadam", "muon", "optimizer"})
ELEMENTWISE = frozenset(
    "adadelta adagrad adam adamax adamw asgd lion nadam radam rmsprop rprop sgd".split()
)
"""Optimizers that move every number by its own gradients alone, so that they work on slices."""
# Set by vlkd itself, or of no meaning in a recipe.
SUPPLIED = frozenset(
    {"params", "lr", "weight_decay", "foreach", "fused", "capturable", "differentiable"}
)


@functools.cache
def optimizer_names() -> tuple[str, ...]:
    """Names that a recipe may give, in lower case."""
    return (*sorted(_torch_files()), *ELSEWHERE)


@functools.cache
def optimizer_keys(name: str) -> tuple[Key, ...]:
    """The keys that an optimizer takes in addition to lr and weight_decay.

    The libraries' annotations name tensors, so a key's type is inferred from its default.

    Raises:
        RecipeError: no such optimizer.
    """
    lowered = name.lower()
    if lowered not in optimizer_names():
        raise RecipeError(f"unknown optimizer '{name}'.")
    file: Path | None
    if lowered in ELSEWHERE:
        file = module_file(ELSEWHERE[lowered][0])
    else:
        file = _torch_files()[lowered]
    if file is None:
        raise RecipeError(f"optimizer '{name}' needs timm: pip install timm.")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name.lower() == lowered:
            return tuple(_keys(node))
    raise RecipeError(f"{file.name} has no class for optimizer '{name}'.")


@functools.cache
def _torch_files() -> dict[str, Path]:
    package = module_file("torch.optim")
    if package is None:
        return {}
    files = {path.stem.lstrip("_"): path for path in package.parent.glob("*.py")}
    return {
        name: path for name, path in files.items() if name not in UNUSABLE and _defines(path, name)
    }


def _defines(path: Path, name: str) -> bool:
    return f"\nclass {name}(" in path.read_text(encoding="utf-8").lower()


def _keys(node: ast.ClassDef) -> list[Key]:
    constructor = next(
        part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"
    )
    arguments = constructor.args.args[1:]
    defaults: list[ast.expr | None] = [None] * (
        len(arguments) - len(constructor.args.defaults)
    ) + list(constructor.args.defaults)
    pairs = list(zip(arguments, defaults, strict=True)) + list(
        zip(constructor.args.kwonlyargs, constructor.args.kw_defaults, strict=True)
    )
    keys = []
    for argument, default in pairs:
        if argument.arg in SUPPLIED:
            continue
        value = REQUIRED if default is None else ast.literal_eval(default)
        keys.append(Key(argument.arg, _type_of(value), value))
    return keys


def _type_of(default: object) -> object:
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):
        return float
    if isinstance(default, tuple) and all(isinstance(part, int | float) for part in default):
        return tuple[(float,) * len(default)]  # type: ignore[misc]
    return Any
