"""What of a tower learns: all, nothing, the head, patterns of parameter names, or the last
layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import LastLayers

Learns = Literal["all", "none", "head", "prompt"] | Sequence[str] | LastLayers

HOLDER = "encoder."
"""Backbones hold the library's module under this name; patterns and layers are written without
it."""


def choose_parameters(
    tower_name: str,
    backbone: Backbone,
    pooler: nn.Module | None,
    heads: Mapping[str, nn.Module],
    learns: Learns,
) -> None:
    """Set `requires_grad` of every parameter of a tower. A tower may be asked again, with another
    choice.

    Parameters that a library or pooler holds fixed by its own design (sine-cosine positions, a
    fixed power, the encoder under an adapter) stay fixed.

    Raises:
        RecipeError: a choice that has no effect: `head` without a head, a pattern without a match,
            more layers than there are.
    """
    parameters = named_parameters(backbone, pooler, heads)
    if backbone.fixed is None:
        backbone.fixed = frozenset(
            name for name, parameter in parameters.items() if not parameter.requires_grad
        )
    able = [name for name in parameters if name not in backbone.fixed]
    chosen = _choose(tower_name, backbone, able, learns)
    for name in able:
        parameters[name].requires_grad_(name in chosen)


def named_parameters(
    backbone: Backbone, pooler: nn.Module | None, heads: Mapping[str, nn.Module]
) -> dict[str, nn.Parameter]:
    """Parameters by the names that patterns use: the library's own, `pooler.*`, `head.*` and
    `heads.NAME.*`."""
    parts = {
        name.removeprefix(HOLDER): parameter for name, parameter in backbone.named_parameters()
    }
    if pooler is not None:
        parts |= {f"pooler.{name}": parameter for name, parameter in pooler.named_parameters()}
    for name, head in heads.items():
        prefix = name if name == "head" else f"heads.{name}"
        parts |= {f"{prefix}.{own}": parameter for own, parameter in head.named_parameters()}
    return parts


def layer_index(backbone: Backbone) -> dict[str, int]:
    """Layer of every backbone parameter by its name without the holder, 0 at the input."""
    layers = backbone.layers()
    last = max(len(layers) - 1, 0)
    found: dict[str, int] = {}
    before = True
    for name in (name.removeprefix(HOLDER) for name, _ in backbone.named_parameters()):
        layer = next(
            (
                index
                for index, prefixes in enumerate(layers)
                if any(_below(name, prefix) for prefix in prefixes)
            ),
            None,
        )
        # A parameter outside of all layers precedes the first block (embeddings) or follows the
        # last (final norms).
        found[name] = (0 if before else last) if layer is None else layer
        before = before and (layer is None or layer == 0)
    return found


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _choose(tower: str, backbone: Backbone, names: list[str], learns: Learns) -> set[str]:
    added = {name for name in names if name.startswith(("pooler.", "head.", "heads."))}
    if isinstance(learns, (LastLayers, Mapping)):
        return (
            _last(
                tower,
                backbone,
                learns.last if isinstance(learns, LastLayers) else int(learns["last"]),
            )
            & set(names)
            | added
        )
    if learns == "all":
        return set(names)
    if learns == "none":
        return set()
    if learns == "head":
        if not added:
            raise RecipeError(
                f"tower '{tower}': `train: head`, but it has no head. Add `head: {{name: linear,"
                " width: ...}` or set `train: none`."
            )
        return added
    if learns == "prompt":
        if not backbone.prompted:
            raise RecipeError(
                f"tower '{tower}': `train: prompt`, but it has no prompt. Add `prompt: {{tokens:"
                " 4}`."
            )
        return {name.removeprefix(HOLDER) for name in backbone.prompted} | added
    assert not isinstance(learns, str)
    return _matching(tower, names, learns)


def _last(tower: str, backbone: Backbone, count: int) -> set[str]:
    layers = backbone.layers()
    if count > len(layers):
        raise RecipeError(
            f"tower '{tower}': `train: {{last: {count}}}`, but the backbone has {len(layers)}"
            " layers. Choose at most that many."
        )
    first = len(layers) - count
    return {name for name, layer in layer_index(backbone).items() if layer >= first}


def _matching(tower: str, names: list[str], patterns: Sequence[str]) -> set[str]:
    """Names that a pattern picks; those with a leading '!' take away, in the order they are
    written."""
    if not patterns:
        raise RecipeError(
            f"tower '{tower}': `train` is an empty list. Set `train: none` to freeze the tower."
        )
    # A list of exceptions alone means: everything but these.
    chosen = set(names) if all(pattern.startswith("!") for pattern in patterns) else set()
    for pattern in patterns:
        hits = {name for name in names if _matches(name, pattern.removeprefix("!"))}
        if not hits:
            raise RecipeError(
                f"tower '{tower}': `train` pattern '{pattern}' matches no"
                f" parameter.{_near(pattern.removeprefix('!'), names)}"
            )
        chosen = chosen - hits if pattern.startswith("!") else chosen | hits
    if not chosen:
        raise RecipeError(
            f"tower '{tower}': the patterns of `train` leave nothing to train. Set `train: none` to"
            " freeze the tower."
        )
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """A pattern matches a whole name, or everything below the module that it names."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _near(pattern: str, names: list[str]) -> str:
    guess = did_you_mean(pattern, [*names, *{name.rpartition(".")[0] for name in names}])
    if guess:
        return guess
    tops = list(dict.fromkeys(name.split(".")[0] for name in names))
    stem = pattern.split(".")[0].rstrip("*")
    guess = did_you_mean(stem, tops) if stem else ""
    return guess or f" Names begin with: {', '.join(tops[:8])}{', ...' if len(tops) > 8 else ''}."
