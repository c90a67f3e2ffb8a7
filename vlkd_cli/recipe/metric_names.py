"""Which losses, miners and distances pytorch-metric-learning has and which keys each takes, read
from its source without importing it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.recipe.component import check_keys
from vlkd_cli.recipe.messages import Path, Problem, shown
from vlkd_cli.recipe.params import REQUIRED, Key, module_file
from vlkd_cli.recipe.schema import Recipe

Part = Literal["loss", "miner", "distance"]

_FOLDERS: dict[Part, str] = {"loss": "losses", "miner": "miners", "distance": "distances"}
_ALIASES = {"NTXLoss": "NTXentLoss"}
_REFUSED = {
    "CrossBatchMemory": "its forward writes a memory. Use distiller 'moco' or a larger batch.",
    "VICRegLoss": "use distiller 'vicreg'.",
    "SelfSupervisedLoss": "list two outputs: student: [image, image@second].",
    "MultipleLosses": "list two distillers.",
    "DynamicSoftMarginLoss": "its forward writes a histogram. Use TripletMarginLoss.",
    "ManifoldLoss": "its rows are not those of classes. Use another loss.",
    "EmbeddingsAlreadyPackagedAsTriplets": "batches hold no triplets here. Use another miner.",
    "CentroidTripletLoss": "pytorch-metric-learning 2.9 no longer has it. Use TripletMarginLoss.",
    "MaximumLossMiner": "pytorch-metric-learning 2.9 no longer has it. Use BatchHardMiner.",
}
_NO_CHOICE = {
    "BaseLossWrapper", "BaseMetricLossFunction", "GenericPairLoss", "LargeMarginSoftmaxLoss",
    "WeightMixin", "WeightRegularizerMixin", "EmbeddingRegularizerMixin", "BaseMiner",
    "BaseDistance", "BatchedDistance",
}  # fmt: skip
WIDTHS = ("embedding_size", "descriptors_dim")
"""Keys that vlkd supplies."""
_NO_KEYS = {
    *WIDTHS, "loss", "mat_based_loss", "weight_init_func", "weight_regularizer",
    "weight_reg_weight", "embedding_regularizer", "embedding_reg_weight", "reducer", "distance",
    "collect_stats",
}  # fmt: skip
"""Keys that take objects, or that vlkd supplies."""


def class_name(name: str) -> str:
    """The library's present name of a class."""
    return _ALIASES.get(name, name)


def parts_of(value: object) -> tuple[str, dict[str, object]]:
    """Name and keys of a part, which is written as a name or as a mapping with `name`."""
    if isinstance(value, str):
        return class_name(value), {}
    assert isinstance(value, Mapping)
    return class_name(value["name"]), {k: each for k, each in value.items() if k != "name"}


def class_names(part: Part) -> list[str]:
    """The names that a recipe may give."""
    return sorted(set(_classes(part)) - _NO_CHOICE - set(_REFUSED))


@functools.cache
def class_keys(part: Part, name: str) -> tuple[Key, ...]:
    """The keys that a class takes; those of its bases where it hands the others on."""
    found: dict[str, Key] = {}
    for node in _lineage(part, name):
        constructor = _constructor(node)
        if constructor is None:
            continue
        for key in _keys(constructor):
            found.setdefault(key.name, key)
        if constructor.args.kwarg is None:
            break
    return tuple(key for key in found.values() if key.name not in _NO_KEYS)


def supplied_widths(name: str) -> list[str]:
    """The keys of a loss that take the width of its rows."""
    nodes = [each for node in _lineage("loss", name) if (each := _constructor(node))]
    return [key.name for node in nodes for key in _keys(node) if key.name in WIDTHS][:1]


def check_metrics(recipe: Recipe) -> Iterator[Problem]:
    """Problems of the distillers `metric` of a recipe."""
    for number, spec in enumerate(recipe.distillers):
        if spec.name == "metric":
            yield from check_metric(spec.keys, ("distillers", number))


def check_metric(keys: Mapping[str, object], path: Path) -> Iterator[Problem]:
    """Problems of the names and keys of a distiller `metric`."""
    if module_file("pytorch_metric_learning") is None:
        return
    for part in _FOLDERS:
        value = keys.get(part)
        if value is None:
            continue
        at = (*path, part)
        if isinstance(value, Mapping) and not isinstance(value.get("name"), str):
            yield Problem(at, f"write a name, or a mapping with name, got {shown(value)}.")
            continue
        if not isinstance(value, str | Mapping):
            continue
        name, own = parts_of(value)
        at_name = at if isinstance(value, str) else (*at, "name")
        if name in _REFUSED:
            yield Problem(at_name, f"{name} is not for this distiller: {_REFUSED[name]}")
        elif name not in class_names(part):
            known = class_names(part)
            yield Problem(
                at_name,
                f"pytorch-metric-learning has no {part} '{name}'.{did_you_mean(name, known)}"
                f" Known: {', '.join(known)}.",
            )
        else:
            yield from check_keys(class_keys(part, name), own, at, f"{part} '{name}'")


@functools.cache
def _classes(part: Part) -> dict[str, ast.ClassDef]:
    package = module_file(f"pytorch_metric_learning.{_FOLDERS[part]}")
    files = sorted(package.parent.glob("*.py")) if package else []
    return {
        node.name: node
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


def _lineage(part: Part, name: str) -> Iterator[ast.ClassDef]:
    """A class and its bases within the library's folder, nearest first."""
    node = _classes(part).get(name)
    if node is not None:
        yield node
        for base in node.bases:
            if isinstance(base, ast.Name):
                yield from _lineage(part, base.id)


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next(
        (
            each
            for each in node.body
            if isinstance(each, ast.FunctionDef) and each.name == "__init__"
        ),
        None,
    )


def _keys(constructor: ast.FunctionDef) -> Iterator[Key]:
    own = constructor.args
    arguments = own.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(own.defaults))
    pairs = [
        *zip(arguments, [*defaults, *own.defaults], strict=True),
        *zip(own.kwonlyargs, own.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        value = REQUIRED if default is None else _value(default)
        yield Key(argument.arg, _type_of(argument.arg, value), value)


def _value(default: ast.expr) -> Any:
    try:
        return ast.literal_eval(default)
    # A constant of the library, whose value is not read.
    except ValueError:
        return None


def _type_of(name: str, default: object) -> object:
    if name == "num_classes":
        return int
    if name == "type_of_triplets":
        # The library takes any other word for the last of these.
        return Literal["all", "hard", "semihard", "easy"]
    if isinstance(default, bool):
        return bool
    return float if isinstance(default, int | float) else Any
