"""The cells of a sweep: grids, random values and seeds, as overrides of one recipe.

vlkd sweep recipe.yaml --grid optimizer.lr=[1e-4,3e-4] --seeds 0,1,2
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.overrides import parse_path, short_names
from vlkd_cli.recipe.yaml_file import read_document

if TYPE_CHECKING:
    import yaml

SEED = "train.seed"
MOST_LETTERS = 120
"""Of a folder's name."""
MOST_CELLS = 100_000
"""Of a sweep: more are a slip of the keyboard, and take minutes to list."""


class Value(NamedTuple):
    """One value of a key: as it was typed, and as it appears in a folder's name."""

    text: str
    shown: str


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep."""

    index: int
    folder: str
    overrides: list[str]
    """`key=value`, the seed last."""


class Draw(NamedTuple):
    """A key with a distribution, `value` mapping a uniform number in [0, 1) to a value."""

    key: str
    value: Callable[[float], Value]


def sweep_cells(
    grids: Sequence[str],
    draws: Sequence[str] = (),
    *,
    num_random: int = 0,
    search_seed: int = 0,
    seeds: Sequence[int] = (0,),
) -> list[SweepCell]:
    """Every cell in order: random samples outermost, so that a larger `num_random` appends cells;
    grids multiply, the last varies fastest; seeds innermost.

    Args:
        grids: `KEY=[a,b]`.
        draws: `KEY=log(a,b)`, `uniform(a,b)`, `int(a,b)` (both ends) or `choice[a,b]`.
        num_random: number of samples; sample i takes one number of `default_rng([search_seed, i])`
            for each key in the order given.
        seeds: values of `train.seed`.

    Raises:
        UserError: an option that is not of this form, a key that is given twice, or equal cells.
    """
    lists = [_grid(option) for option in grids]
    chances = [_draw(option) for option in draws]
    keys = [key for key, _ in lists] + [draw.key for draw in chances]
    _refuse_idle(keys, chances, num_random, seeds)
    count = math.prod([len(values) for _, values in lists]) * max(num_random, 1) * len(seeds)
    if count > MOST_CELLS:
        raise UserError(
            f"the sweep has {count:,} cells; at most {MOST_CELLS:,}. Name fewer values."
        )
    _refuse_replaced([*lists, *((draw.key, []) for draw in chances)])
    varying = [key for key, values in lists if len(values) > 1] + [draw.key for draw in chances]
    short = short_names(varying)
    cells: list[SweepCell] = []
    for sampled in _random(chances, num_random, search_seed):
        for chosen in itertools.product(*(values for _, values in lists)):
            pairs = dict(zip(keys, [*chosen, *sampled], strict=True))
            for seed in seeds:
                index = len(cells)
                words = [f"{short[key]}={pairs[key].shown}" for key in varying]
                name = "-".join([f"{index:03d}", *words, f"seed={seed}"])
                settings = [f"{key}={value.text}" for key, value in pairs.items()]
                cells.append(SweepCell(index, _cut(name), [*settings, f"{SEED}={seed}"]))
    _refuse_equal(cells)
    return cells


def _random(draws: Sequence[Draw], count: int, search_seed: int) -> list[list[Value]]:
    """The sampled values of each key; one empty list without `--draw`."""
    if not draws:
        return [[]]
    import numpy as np

    found = []
    for number in range(count):
        rng = np.random.default_rng([search_seed, number])
        found.append([draw.value(float(rng.random())) for draw in draws])
    return found


def _grid(option: str) -> tuple[str, list[Value]]:
    key, text = _split("--grid", option, "optimizer.lr=[1e-4,3e-4]")
    return key, _list("--grid", option, text)


def _draw(option: str) -> Draw:
    key, text = _split("--draw", option, "optimizer.lr=log(1e-5,1e-3)")
    if text.startswith("choice"):
        items = _list("--draw", option, text.removeprefix("choice"))
        return Draw(key, lambda u: items[math.floor(u * len(items))])
    found = re.fullmatch(r"(log|uniform|int)\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)", text)
    try:
        low, high = (float(found[2]), float(found[3])) if found else (0.0, 0.0)
    except ValueError:
        found = None
    if found is None:
        guess = did_you_mean(re.split(r"[(\[]", text)[0], ("log", "uniform", "int", "choice"))
        raise UserError(
            f"--draw {option}: write KEY=log(a,b), uniform(a,b), int(a,b) or choice[a,b], e.g."
            f" --draw 'optimizer.lr=log(1e-5,1e-3)'.{guess}"
        )
    kind = found[1]
    if not low < high or not math.isfinite(low * high) or (kind == "log" and low <= 0):
        bounds = "0 < a < b" if kind == "log" else "a < b"
        raise UserError(f"--draw {option}: {kind}(a,b) needs {bounds}.")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise UserError(f"--draw {option}: int(a,b) needs integers.")
    return Draw(key, lambda u: _number(kind, low, high, u))


def _number(kind: str, low: float, high: float, u: float) -> Value:
    if kind == "int":
        text = str(int(low) + math.floor(u * (int(high) - int(low) + 1)))
        return Value(text, text)
    if kind == "log":
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    else:
        value = low + u * (high - low)
    rounded = f"{value:.3g}"
    return Value(rounded, rounded)


def _split(name: str, option: str, example: str) -> tuple[str, str]:
    key, equals, text = option.partition("=")
    if not equals or not parse_path(key.strip()):
        raise UserError(f"{name} {option}: write KEY=VALUES, e.g. {name} '{example}'.")
    return key.strip(), text.strip()


def _list(name: str, option: str, text: str) -> list[Value]:
    """The items of a YAML list, each as it was typed."""
    import yaml

    try:
        node = yaml.compose(text)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise UserError(f"{name} {option}: write a list of values, e.g. [1e-4,3e-4].")
    return [
        Value(text[item.start_mark.index : item.end_mark.index].strip(), _shown(item))
        for item in node.value
    ]


def _shown(node: yaml.Node) -> str:
    """A value in a folder's name: a scalar as it was typed, a mapping by its `name`."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.MappingNode):
        pairs = {key.value: value for key, value in node.value}
        if isinstance(pairs.get("name"), yaml.ScalarNode):
            return str(pairs["name"].value)
        return "-".join(f"{key}={_shown(value)}" for key, value in pairs.items())
    assert isinstance(node, yaml.SequenceNode)
    return "-".join(_shown(item) for item in node.value)


def _cut(name: str) -> str:
    """A folder's name without letters that file systems or shells mind, at most 120 letters."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]", "_", name)
    if len(plain) <= MOST_LETTERS:
        return plain
    return f"{plain[: MOST_LETTERS - 7]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _refuse_idle(
    keys: Sequence[str], draws: Sequence[Draw], num_random: int, seeds: Sequence[int]
) -> None:
    paths = [parse_path(key) for key in keys]
    for key, path in zip(keys, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"--grid and --draw: '{key}' is given twice. Leave one of them out.")
    if parse_path(SEED) in paths:
        raise UserError(f"{SEED} is what --seeds is for: --seeds 0,1,2.")
    if bool(draws) != bool(num_random):
        raise UserError(
            "--random N and --draw 'KEY=log(a,b)' need each other: one is the number of values, the"
            " other where they come from."
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {','.join(map(str, seeds))}: give different numbers.")


def _refuse_replaced(given: Sequence[tuple[str, Sequence[Value]]]) -> None:
    """Refuse values without effect: of a key that is part of one which is given after it, and those
    in a mapping that a key given after it sets again."""
    for (before, values), (after, _) in itertools.combinations(given, 2):
        first, second = parse_path(before), parse_path(after)
        if second == first[: len(second)]:
            raise UserError(
                f"--grid and --draw: '{before}' has no effect: '{after}', which is given after it,"
                " replaces it. Give it first, or leave one of them out."
            )
        if first != second[: len(first)]:
            continue
        for value in values:
            if _holds(
                read_document(value.text, before, numbered=False).value, second[len(first) :]
            ):
                raise UserError(
                    f"--grid {before}={value.text}: its value of '{after}' has no effect: that key"
                    " has values of its own. Leave one of them out."
                )


def _holds(value: object, path: Sequence[str | int]) -> bool:
    """Whether a mapping has a value at this path."""
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _refuse_equal(cells: Sequence[SweepCell]) -> None:
    seen: dict[str, int] = {}
    for cell in cells:
        plain = [
            (key, read_document(text, key, numbered=False).value)
            for key, _, text in (each.partition("=") for each in cell.overrides)
        ]
        first = seen.setdefault(json.dumps(plain, sort_keys=True, default=str), cell.index)
        if first != cell.index:
            raise UserError(
                f"cells {first} and {cell.index} are equal ({', '.join(cell.overrides)}). Leave one"
                " of the values out; where random values repeat, write them as a --grid."
            )
