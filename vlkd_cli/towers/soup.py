"""Averages of several trained towers of one kind (model soups)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_cli.checkpoint import State
from vlkd_cli.errors import CheckpointError
from vlkd_cli.towers.merging import plain
from vlkd_cli.towers.outputs import BACKBONE
from vlkd_cli.towers.tower import Tower


def averaged(states: Sequence[State], names: Sequence[str]) -> State:
    """The mean of every floating-point entry, in float64; integers are those of the first.

    Args:
        names: what messages call the states.

    Raises:
        CheckpointError: they are of different models; names the first entry that differs.

    Source: Wortsman et al., Model soups, ICML 2022, arXiv:2203.05482.
    """
    first = states[0]
    for state, name in zip(states[1:], names[1:], strict=True):
        for key in [*first, *state]:
            if key not in first or key not in state or first[key].shape != state[key].shape:
                raise CheckpointError(
                    f"{names[0]} and {name} do not fit each other: '{key}' is missing in one of"
                    " them or has another shape. Average runs of one recipe."
                )
    return {key: _mean([state[key] for state in states]) for key in first}


def _mean(values: Sequence[Tensor]) -> Tensor:
    first = values[0]
    if not first.is_floating_point():
        return first
    total = torch.stack([value.double() for value in values]).mean(0)
    return total.to(first.dtype)


class Tried(NamedTuple):
    """A run that greedy averaging tried to add."""

    number: int
    score: float
    is_added: bool


class Greedy(NamedTuple):
    """What greedy averaging came to.

    Args:
        each: scores of the runs alone.
        taken: numbers of the runs, the best first.
        score: of their average.
        trail: what was tried after the best run, in order.
    """

    each: list[float]
    taken: list[int]
    score: float
    trail: list[Tried]


def greedy(count: int, score_of: Callable[[Sequence[int]], float]) -> Greedy:
    """Start from the best run and add each further run, by score, with which the average scores no
    lower. Ties are broken by the order of the list.

    Args:
        score_of: the score of the average of some runs, higher being better.

    Source: Wortsman et al. 2022, algorithm 1.
    """
    each = [score_of([number]) for number in range(count)]
    order = sorted(range(count), key=lambda number: -each[number])
    taken, best, trail = [order[0]], each[order[0]], []
    for number in order[1:]:
        score = score_of([*taken, number])
        trail.append(Tried(number, score, score >= best))
        if score >= best:
            taken.append(number)
            best = score
    return Greedy(each, taken, best, trail)


def soup_of(towers: Sequence[Tower], names: Sequence[str]) -> Tower:
    """The average of towers, which replaces the first one.

    Args:
        names: of their runs.

    Raises:
        CheckpointError: they are built differently.
    """
    # Adapters of different ranks, and runs with and without one, have the same weights once merged.
    ready = [plain(tower) for tower in towers]
    first = ready[0]
    for other, name in zip(ready[1:], names[1:], strict=True):
        if other.encoder.settings != first.encoder.settings or not first.same_input(other):
            raise CheckpointError(
                f"{names[0]} and {name} are built differently (model, activation, image size or"
                " tokenizer), so their average means nothing. Average runs of one recipe."
            )
    states = [_whole_state(tower) for tower in ready]
    _load_whole(first, averaged(states, names))
    return first


def _whole_state(tower: Tower) -> State:
    """Tensors under the names of a tower that is trained as a whole; those of a frozen backbone are
    in no state dict of the tower."""
    held = tower.encoder.state_dict() if tower.backbone_is_frozen else {}
    return {**tower.state_dict(), **{f"{BACKBONE}.{key}": value for key, value in held.items()}}


def _load_whole(tower: Tower, state: State) -> None:
    prefix = f"{BACKBONE}."
    held = [key for key in state if tower.backbone_is_frozen and key.startswith(prefix)]
    tower.load_state_dict({key: value for key, value in state.items() if key not in held})
    if held:
        tower.encoder.load_state_dict({key.removeprefix(prefix): state[key] for key in held})
