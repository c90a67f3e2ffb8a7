"""What a step encodes: each tower once on each of its inputs, whatever the number of pictures and
distillers that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_cli.composition.chunks import Reads, encode_in_chunks
from vlkd_cli.composition.gradient_sums import GradientSums
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import Batch
from vlkd_cli.data.stored_view import ROWS
from vlkd_cli.distributed.sharding import divided_modules
from vlkd_cli.preprocessing import Inputs
from vlkd_cli.recipe.address import MAIN_VIEW, Address
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.types import Progress
from vlkd_cli.towers.blocks import blocks_of
from vlkd_cli.towers.outputs import Output
from vlkd_cli.towers.tower import Tower

Towers = Mapping[str, Tower | MomentumTower]


class Pass(NamedTuple):
    """One run of a tower on one input: its outputs, each of the pictures that are read of it."""

    tower: str
    input: str
    outputs: dict[str, tuple[int, ...]]


class Rows(NamedTuple):
    """The rows that an address selects in a batch.

    Args:
        values: `[B, E]`, `[B, T, E]`, or `[M, E]` with `counts`.
        counts: `[B]` int64: how many of the M rows belong to each sample, where that varies.
    """

    values: Tensor
    counts: Tensor | None = None

    def flat(self) -> Tensor:
        """`[M, E]`, the rows of one sample after those of another."""
        return self.values if self.values.ndim == 2 else self.values.flatten(0, 1)

    def samples(self) -> Tensor:
        """`[M]` int64: which sample each of the flattened rows belongs to."""
        device = self.values.device
        if self.counts is not None:
            return torch.arange(len(self.counts), device=device).repeat_interleave(self.counts)
        batch, *positions = self.values.shape[:-1]
        return torch.arange(batch, device=device).repeat_interleave(
            positions[0] if positions else 1
        )


def plan(addresses: Iterable[Address]) -> tuple[Pass, ...]:
    """The passes that give these addresses, in the order in which they are first read."""
    pictures: dict[tuple[str, str], dict[str, set[int]]] = {}
    for address in addresses:
        outputs = pictures.setdefault((address.tower, address.input), {})
        outputs.setdefault(address.output, set()).add(address.picture)
    return tuple(
        Pass(tower, view, {output: tuple(sorted(read)) for output, read in outputs.items()})
        for (tower, view), outputs in pictures.items()
    )


def input_key(towers: Towers, tower: str, view: str) -> str:
    """The key of `Batch.inputs` that a tower reads; a follower reads the followed tower's."""
    reader = towers[tower]
    name = reader.follows if isinstance(reader, MomentumTower) else tower
    return name if view == MAIN_VIEW else f"{name}@{view}"


def encode(
    passes: Iterable[Pass],
    towers: Towers,
    learning: Iterable[str],
    batch: Batch,
    progress: Progress,
    chunk: int | None = None,
    known: dict[tuple[str, str], Reads] | None = None,
) -> dict[Address, Rows]:
    """Run the passes on a batch.

    Args:
        learning: names of the towers that take a gradient; the others run without.
        chunk: pictures or texts whose activations are held at a time; None: all.
        known: what chunked passes, by tower and input, were seen to read; filled here.
    """
    known = {} if known is None else known
    sums = _sums(known)
    begun = []
    for one in passes:
        tower = towers[one.tower]
        with torch.set_grad_enabled(torch.is_grad_enabled() and one.tower in learning):
            key = input_key(towers, one.tower, one.input)
            begun.append(_begin(one, tower, key, batch, progress, chunk, known, sums))
    found: dict[Address, Rows] = {}
    for finish in begun:
        found |= finish()
    return found


def _begin(
    one: Pass,
    tower: Tower | MomentumTower,
    key: str,
    batch: Batch,
    progress: Progress,
    chunk: int | None,
    known: dict[tuple[str, str], Reads],
    sums: Mapping[str, GradientSums],
) -> Callable[[], dict[Address, Rows]]:
    """Run a pass, or all but the last piece of a chunked one that learns; the function that is
    returned completes it."""
    original = tower.tower if isinstance(tower, MomentumTower) else tower
    inputs, pictures = _by_picture(batch.inputs[key], FACTS[original.modality].axes)
    hidden = batch.hidden.get(one.input) if original.reads_hidden else None
    if hidden is not None and hidden.ndim == 3:
        hidden = hidden.flatten(0, 1)
    step = {"step": progress.step} if isinstance(tower, MomentumTower) else {}

    def run(rows: Inputs, mask: Tensor | None) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = tower(
            rows, one.outputs, hidden=mask, pictures=pictures, **step
        )
        return outputs

    if chunk is None:
        found = _by_address(one, original, run(inputs, hidden), hidden, pictures)
        return lambda: found
    # A frozen backbone stores no activations, so running it again would only cost time.
    learns = torch.is_grad_enabled() and not original.backbone_is_frozen
    reads = known.get((one.tower, one.input))
    complete = encode_in_chunks(
        run,
        inputs,
        hidden,
        size=max(chunk // pictures, 1) * pictures,
        learns=learns,
        layers=blocks_of(original.encoder) if learns and reads is None else (),
        divided=divided_modules(original.encoder) if reads is None else (),
        reads=reads,
        sums=sums.get(one.tower) if learns and reads is not None else None,
    )

    def finish() -> dict[Address, Rows]:
        values, reads = complete()
        if reads is not None:
            known[one.tower, one.input] = reads
        return _by_address(one, original, values, hidden, pictures)

    return finish


def _sums(known: Mapping[tuple[str, str], Reads]) -> dict[str, GradientSums]:
    """What adds up the gradients of each tower in a step, over all passes that are known."""
    weights: dict[str, dict[int, Tensor]] = {}
    for (tower, _), reads in known.items():
        weights.setdefault(tower, {}).update((id(one), one) for one in reads.weights)
    return {tower: GradientSums(found.values()) for tower, found in weights.items() if found}


def _by_address(
    one: Pass, tower: Tower, values: Mapping[str, Tensor], hidden: Tensor | None, pictures: int
) -> dict[Address, Rows]:
    found: dict[Address, Rows] = {}
    for output, read in one.outputs.items():
        counts = None
        if values[output].ndim == 2 and not tower.graph.is_row(output):
            assert hidden is not None
            counts = _counts(tower, output, Output(hidden, tuple(range(1, pictures + 1))), read)
        together = Output(values[output], read, counts)
        for picture in read:
            own = together.of((picture,))
            address = Address(one.tower, output, one.input, picture)
            found[address] = Rows(own.values, own.counts)
    return found


def _by_picture(inputs: Inputs, axes: int) -> tuple[Inputs, int]:
    """Inputs of all pictures, sample after sample, and how many each sample has.

    Args:
        axes: of a batch with one picture of each sample, at most.
    """
    if isinstance(inputs, Tensor):
        return (inputs.flatten(0, 1), inputs.shape[1]) if inputs.ndim > axes else (inputs, 1)
    if ROWS in inputs:  # a stored tower's: `[B, V, ...]` each
        flat = {name: values.flatten(0, 1) for name, values in inputs.items()}
        return flat, inputs[ROWS].shape[1]
    return inputs, 1


def _counts(tower: Tower, output: str, hidden: Output, pictures: tuple[int, ...]) -> Tensor:
    chosen = hidden.of(pictures).values
    return (chosen if tower.graph.at(output) == "hidden" else ~chosen).sum(1)
