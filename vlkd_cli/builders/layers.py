"""The layers of any network, found from its structure rather than from a table of families."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_layers(module: nn.Module) -> list[list[str]]:
    """Name prefixes of each layer, input side first.

    A layer is a block inside a plain container (Sequential, ModuleList), containers being looked
    for along the path that holds most of the parameters, word embeddings aside. Single
    convolutions, linears and norms between blocks are not layers of their own, unless the network
    consists of nothing else. What follows the containers, such as a pooler, belongs to the last
    layer.
    """
    units = list(_units(module, "", _count(module) / 2, listed=False, alike=False))
    blocks = [unit for unit in units if any(True for _ in unit[1].children())]
    chosen = blocks or units
    layers: list[list[str]] = []
    seen_row = False
    for name, _, listed in chosen:
        if seen_row and not listed:
            layers[-1].append(name)
        else:
            layers.append([name])
        seen_row = seen_row or listed
    return layers


def first_convolution(module: nn.Module) -> nn.Conv2d | None:
    """The convolution that a network begins with; None where it has none."""
    return next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)


def _units(
    module: nn.Module, prefix: str, half: float, listed: bool, alike: bool
) -> Iterator[tuple[str, nn.Module, bool]]:
    """Modules that are not opened further: name, module, and whether it is inside a plain
    container."""
    children = [
        (name, child)
        for name, child in module.named_children()
        if any(True for _ in child.parameters())
    ]
    plain = type(module) in CONTAINERS
    if prefix and not plain and (alike or not children or _count(module) <= half):
        yield prefix, module, listed
        return
    row = (
        plain
        and len({type(child) for _, child in children}) == 1
        and (len(children) > 1 or isinstance(module, nn.ModuleList))
    )
    for name, child in children:
        yield from _units(child, f"{prefix}.{name}" if prefix else name, half, plain, row)


def _count(module: nn.Module) -> int:
    words = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in words)
