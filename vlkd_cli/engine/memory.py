"""How large a batch fits into a memory: `vlkd train --dry-run --memory 24GiB`.

On a GPU it is measured: every try is a whole step. Elsewhere what autograd saves is counted, which
needs a step of four samples only: towers are linear in the batch, distillers are counted on random
rows of the size in question.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from vlkd_cli.composition.chunks import refuse_batch_statistics
from vlkd_cli.composition.composition import Composition
from vlkd_cli.composition.passes import Pass, Rows, encode, input_key
from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.errors import RecipeError
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.recipe.address import Address
from vlkd_cli.towers.blocks import activations_stored, blocks_of
from vlkd_cli.towers.tower import Tower

CONTEXT_BYTES = 632 << 20
"""What CUDA and its libraries hold on a card, whatever runs."""
FRAGMENTATION = 1.05
MOST = 1 << 20
"""Samples of the largest batch that is tried."""
MOST_COUNTED = 2048
"""Rows up to which distillers are counted at full size; beyond, by a parabola."""


class Fit(NamedTuple):
    """A batch that fits: samples, `train.chunk` (None: without), and bytes."""

    batch_size: int
    chunk: int | None
    num_bytes: int


def what_fits(trainer: Trainer, batch: Batch, limit: int) -> list[Fit]:
    """The largest batch without chunks; the largest chunk for the recipe's batch where that does
    not fit whole; and the largest batch in chunks of a quarter of the first.

    Args:
        trainer: has taken a step, so that the optimizer's state is there.
        batch: at least four samples of the data, or all of a smaller batch.
        limit: bytes of a GPU, which must also hold what its driver and libraries take.
    """
    used = _measured(trainer, batch) if trainer.device.type == "cuda" else counted(trainer, batch)
    least = max(one.distiller.minimum_batch for one in trainer.composition.objectives)

    def needs(batch_size: int, chunk: int | None) -> int:
        return int(used(batch_size, chunk) * FRAGMENTATION) + CONTEXT_BYTES

    def largest(size: Callable[[int], Fit]) -> Fit | None:
        return _largest(size, limit, least)

    found = [largest(lambda n: Fit(n, None, needs(n, None)))]
    wanted = trainer.settings.batch_size
    whole = found[0].batch_size if found[0] else 0
    if _takes_chunks(trainer.composition):
        if whole < wanted:
            found.append(_largest(lambda n: Fit(wanted, n, needs(wanted, n)), limit, 1, wanted))
        quarter = max(whole // 4, 1)
        found.append(largest(lambda n: Fit(n, min(quarter, n), needs(n, min(quarter, n)))))
    return [fit for fit in found if fit is not None]


def counted(trainer: Trainer, batch: Batch) -> Callable[[int, int | None], int]:
    """The peak of allocated bytes of a step, by the number of samples and `train.chunk`.

    The backward pass takes the passes in reverse: while it is in one, what those before it saved is
    still there, and the gradients of those after it are there already. In chunks it begins with one
    chunk of every pass.
    """
    composition = trainer.composition
    held = _held(trainer)
    passes = [_Pass.of(one, trainer, batch) for one in composition.passes]
    inputs = _bytes_of_batch(batch) / len(batch)
    of_distillers = _extrapolated(lambda n: _distillers(trainer, batch, n))
    gradients_of = {name: _gradients(tower) for name, tower in composition.towers.items()}
    widest = {
        name: max((_size(each) for each in tower.parameters() if each.requires_grad), default=0)
        for name, tower in composition.towers.items()
    }
    accumulated = _gradients(composition) if trainer.settings.accumulate > 1 else 0

    def peak(batch_size: int, chunk: int | None) -> int:
        saved, largest, found, given = list[float](), list[float](), list[float](), 0.0
        for one in passes:
            samples: float = batch_size
            if chunk is not None:
                samples = min(max(chunk / one.pictures, 1), batch_size)
            saved.append(one.saved(samples))
            largest.append(one.largest * samples)
            given += one.outputs * batch_size
            found.append(sum(saved) + given + one.passing * samples)
        outputs = given
        found.append(sum(saved) + outputs + of_distillers(batch_size))
        gradients = 2.0 * outputs + _gradients(composition.distillers)
        done: set[str] = set()
        again = [each if trainer.settings.checkpoint_activations else 0 for each in largest]
        for number, one in reversed(list(enumerate(passes))):
            found.append(sum(saved[: number + 1]) + again[number] + gradients)
            if one.tower not in done:
                gradients += gradients_of.get(one.tower, 0)
                done.add(one.tower)
            # The last of its layers, with the results that it computes and their gradients.
            found.append(sum(saved[:number]) + largest[number] + gradients)
        if chunk is not None:
            # The other chunks run one by one, next to the gradients of all that was before; that of
            # a weight is whole before it is added.
            for number, one in enumerate(passes):
                found.append(saved[number] + again[number] + gradients)
                found.append(largest[number] + gradients + widest.get(one.tower, 0))
        return int(held + inputs * batch_size + accumulated + max(found))

    return peak


class _Pass(NamedTuple):
    """What a tower saves in one pass: bytes once and for each sample; what its backward pass needs
    at a time, its outputs, and what its forward pass takes at most beyond what it saves and gives,
    for each sample; pictures of a sample."""

    tower: str
    once: float
    each: float
    largest: float
    outputs: float
    passing: float
    pictures: int

    @classmethod
    def of(cls, one: Pass, trainer: Trainer, batch: Batch) -> _Pass:
        few, more = (_encoded(one, trainer, _repeated(batch, n)) for n in (2, 4))
        each = (more.saved - few.saved) / 2
        largest, tower = 2.0 * more.largest, trainer.composition.all_towers[one.tower]
        if trainer.settings.checkpoint_activations and isinstance(tower, Tower):
            with activations_stored():
                stored = _encoded(one, trainer, _repeated(batch, 4))
            blocks = max(len(blocks_of(tower.encoder)), 1)
            largest = 2.0 * stored.largest + (stored.saved - more.saved) / blocks
        inputs = batch.inputs[input_key(trainer.composition.all_towers, one.tower, one.input)]
        pictures = inputs.shape[1] if isinstance(inputs, Tensor) and inputs.ndim == 5 else 1
        passing = max(more.peak - more.saved - more.outputs, 0) / 4
        return cls(
            *(one.tower, few.saved - 2 * each, each, largest / 4),
            *(more.outputs / 4, passing, pictures),
        )

    def saved(self, samples: float) -> float:
        return self.once + self.each * samples


class _Encoded(NamedTuple):
    """Bytes that a pass saves, of the largest of these tensors, of its outputs, and of all tensors
    that it makes where they are most."""

    saved: int
    largest: int
    outputs: int
    peak: int


def _encoded(one: Pass, trainer: Trainer, batch: Batch) -> _Encoded:
    composition, progress = trainer.composition, trainer.progress
    with (
        autocast(trainer.settings.precision, trainer.device),
        _saving(composition, batch) as saved,
        _Live(_addresses(composition, batch)) as live,
    ):
        towers = composition.all_towers
        found = encode([one], towers, composition.towers, batch, progress)
    values = [rows.values for rows in found.values()]
    outputs = {one.untyped_storage().data_ptr(): _size(one) for one in values}
    stored = [size for key, size in saved.items() if key not in outputs]
    return _Encoded(sum(stored), max(stored, default=0), sum(outputs.values()), live.peak)


class _Live(TorchDispatchMode):
    """The most bytes of tensors that are made within it and alive at once.

    Args:
        apart: addresses of tensors that do not count.
    """

    def __init__(self, apart: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._apart, self._there = apart, set[int]()

    def __torch_dispatch__(
        self,
        run: Callable[..., object],
        types: object,
        arguments: tuple[object, ...] = (),
        keys: Mapping[str, object] | None = None,
    ) -> object:
        found = run(*arguments, **(keys or {}))
        for one in _leaves(found):
            if isinstance(one, Tensor):
                self._note(one.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._there or address in self._apart:
            return
        self._there.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, address, size)

    def _drop(self, address: int, size: int) -> None:
        self._there.discard(address)
        self.now -= size


def _gradients(module: nn.Module) -> int:
    return sum(_size(one) for one in module.parameters() if one.requires_grad)


def _distillers(trainer: Trainer, batch: Batch, samples: int) -> float:
    """Bytes that the distillers save of so many samples, the outputs of towers left out."""
    composition, many = trainer.composition, _repeated(batch, samples)
    with torch.no_grad(), autocast(trainer.settings.precision, trainer.device):
        few = encode(
            composition.passes,
            composition.all_towers,
            composition.towers,
            _repeated(batch, 4),
            trainer.progress,
        )
    outputs = {address: _more(rows, address, composition, samples) for address, rows in few.items()}
    with (
        autocast(trainer.settings.precision, trainer.device),
        _saving(composition, many, *(rows.values for rows in outputs.values())) as saved,
    ):
        loss = composition(many, trainer.progress, outputs).loss
    composition.discard()
    return sum(saved.values()) + sum(map(_size, _saved_by_nodes(loss)))


def _more(rows: Rows, address: Address, composition: Composition, samples: int) -> Rows:
    copies = -(-samples // 4)
    if rows.counts is None:
        values, counts = rows.values.repeat(copies, *[1] * (rows.values.ndim - 1))[:samples], None
    else:
        values, counts = rows.values.repeat(copies, 1), rows.counts.repeat(copies)[:samples]
        values = values[: int(counts.sum())]
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    learns = address.tower in composition.towers
    return Rows(noise.to(values).requires_grad_(learns), counts)


def _saved_by_nodes(loss: Tensor) -> Iterator[Tensor]:
    """Tensors that our own autograd functions save for their backward pass."""
    waiting, seen = [loss.grad_fn], set[Node]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for value in getattr(node, "__dict__", {}).values():
            yield from (each for each in _leaves(value) if isinstance(each, Tensor))
        waiting += [following for following, _ in node.next_functions]


def _leaves(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else (value,)


@contextmanager
def _saving(composition: Composition, batch: Batch, *others: Tensor) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd saves within it, without weights and inputs."""
    saved: dict[int, int] = {}
    apart = _addresses(composition, batch, *others)

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _addresses(composition: Composition, batch: Batch, *others: Tensor) -> set[int]:
    """Addresses of weights, inputs and other tensors that are there already."""
    known = [*_tensors_of(composition), *others, *batch.tensors()]
    return {tensor.untyped_storage().data_ptr() for tensor in known}


def _held(trainer: Trainer) -> int:
    """Bytes of weights, buffers, averages and the optimizer's state."""
    tensors = [*_tensors_of(trainer.composition)]
    for state in trainer.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    if trainer.ema is not None:
        tensors += trainer.ema.averages
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def _tensors_of(composition: Composition) -> Iterator[Tensor]:
    # Frozen backbones are not part of the module tree.
    every = composition.all_towers.values()
    towers = [one if isinstance(one, Tower) else one.tower for one in every]
    for module in (composition, *composition.frozen.values(), *(one.encoder for one in towers)):
        yield from module.parameters()
        yield from module.buffers()


def _measured(trainer: Trainer, batch: Batch) -> Callable[[int, int | None], int]:
    """The same on a GPU, by taking steps; more than any limit where the card is too small."""

    def peak(batch_size: int, chunk: int | None) -> int:
        composition, before = trainer.composition, trainer.composition.chunk
        composition.chunk = chunk
        rows = _repeated(batch, batch_size)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(trainer.device)
        try:
            trainer.step([rows] * min(trainer.settings.accumulate, 2))
            return torch.cuda.max_memory_allocated(trainer.device)
        except torch.OutOfMemoryError:
            composition.discard()
            for parameter in composition.parameters():
                parameter.grad = None
            return 1 << 60
        finally:
            composition.chunk = before

    return peak


def _largest(size: Callable[[int], Fit], limit: int, least: int, most: int = MOST) -> Fit | None:
    """The largest number whose fit needs at most the limit, to one part in sixteen."""
    best: Fit | None = None
    number, step = least, 0
    while number <= most and (fit := size(number)).num_bytes <= limit:
        best, number = fit, 2 * number
    if best is None:
        return None
    reached = number // 2
    step = reached // 2
    while step >= max(reached // 16, 1):
        if reached + step <= most and (fit := size(reached + step)).num_bytes <= limit:
            best, reached = fit, reached + step
        step //= 2
    return best


def _extrapolated(count: Callable[[int], float]) -> Callable[[int], float]:
    found: dict[int, float] = {}

    def at(samples: int) -> float:
        if samples not in found:
            found[samples] = count(samples)
        return found[samples]

    def bytes_of(samples: int) -> float:
        if samples <= MOST_COUNTED:
            return at(samples)
        first, second, third = (at(MOST_COUNTED // part) for part in (4, 2, 1))
        # Newton's form through a quarter, a half and all of the rows.
        x = samples / (MOST_COUNTED / 4)
        slope, next_slope = second - first, (third - second) / 2
        bend = (next_slope - slope) / 3
        return first + (x - 1) * slope + (x - 1) * (x - 2) * max(bend, 0.0)

    return bytes_of


def _repeated(batch: Batch, samples: int) -> Batch:
    copies = -(-samples // len(batch))
    return batch.each(lambda one: one.repeat(copies, *[1] * (one.ndim - 1))[:samples])


def _bytes_of_batch(batch: Batch) -> int:
    return sum(map(_size, batch.tensors()))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _takes_chunks(composition: Composition) -> bool:
    try:
        for name, tower in (*composition.towers.items(), *composition.followers.items()):
            refuse_batch_statistics(name, tower)
    except RecipeError:
        return False
    return any(not tower.backbone_is_frozen for tower in composition.towers.values())
