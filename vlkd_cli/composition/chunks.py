"""Encoding a large batch piece by piece, with the activations of one piece in memory at a time.

Forward stores only the activations of the last piece of a pass; backward processes the pieces
from last to first: it runs each again with its random state, computes its gradients and frees it.
The last pieces of all passes are encoded after the others, since autograd goes backward in the
opposite order: their activations are gone before any piece runs again. To autograd this is one
graph, so distillers see all rows at once, a parameter's hooks fire once, and neither the trainer
nor DistributedDataParallel know of it. Dropout of a piece is the same in both runs.

A piece is one node of that graph (`_Again`); the pieces of a tower add up their gradients while
they compute them (`gradient_sums.py`). torch's checkpoint intercepts every tensor that an operation
saves, in both runs, which costs more than the operations themselves where a piece is small; it
serves in the first step, which shows the weights that a pass reads, and where weights are divided
among processes and arrive block by block.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup
(GradCache), arXiv:2101.06983, by way of Chen et al., Training Deep Nets with Sublinear Memory Cost,
arXiv:1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vlkd_cli.composition.gradient_sums import (
    GradientSums,
    nodes_before_leaves,
    without_hooks,
)
from vlkd_cli.distributed.sharding import gather_once_in_backward, gathered_once
from vlkd_cli.errors import RecipeError
from vlkd_cli.numerics.autograd import Context
from vlkd_cli.preprocessing import Inputs

Run = Callable[[Inputs, Tensor | None], dict[str, Tensor]]


class Reads(NamedTuple):
    """What a pass was seen to do: the weights that it reads, and its outputs that learn."""

    weights: tuple[Tensor, ...]
    learning: frozenset[str]


Finish = Callable[[], tuple[dict[str, Tensor], Reads | None]]


def encode_in_chunks(
    run: Run,
    inputs: Inputs,
    hidden: Tensor | None,
    *,
    size: int,
    learns: bool,
    layers: Sequence[nn.Module] = (),
    divided: Sequence[nn.Module] = (),
    reads: Reads | None = None,
    sums: GradientSums | None = None,
) -> Finish:
    """Begin to encode all inputs, `size` of them at a time.

    Args:
        run: a tower's forward for one pass.
        inputs: `[N, ...]` pictures, or a TextInput of N texts.
        hidden: `[N, T]` hidden positions, or None.
        size: inputs of a piece, a multiple of the pictures of a sample.
        learns: whether gradients are needed; otherwise every piece runs once.
        layers: whose weights a piece reads or not (experts, layers that are left out at random).
        divided: parts of the tower whose weights are divided among processes; they are gathered
            once, so that the last piece does not wait for other passes.
        reads: what an earlier step returned for this pass.
        sums: of the gradients in this step, which passes of a tower share; by default of this pass.

    Returns:
        a function that encodes the last piece of a pass that learns, to be called when the other
        passes have begun, too. It gives what `run` gives for all inputs, and what to give the next
        step.
    """
    *others, last = _pieces(inputs, hidden, size)
    pieces: list[dict[str, Tensor]] = []
    if learns and reads is not None and sums is None and reads.weights:
        sums = GradientSums(reads.weights)

    def add(piece: dict[str, Tensor]) -> None:
        pieces.append(piece)
        # Pieces that share autocast's copy of a weight would add their gradients in 16 bits.
        torch.clear_autocast_cache()

    with gathered_once(divided):
        for rows, mask in others:
            if not learns:
                add(run(rows, mask))
            elif reads is None:
                add(checkpoint(run, rows, mask, use_reentrant=False))
            elif sums is None:
                add(run(rows, mask))
            else:
                add(_again(run, rows, mask, reads, sums))
        if not learns or divided:
            add(run(*last))

    def finish() -> tuple[dict[str, Tensor], Reads | None]:
        if len(pieces) == len(others):
            # Backward begins with this piece, so running it again would save nothing.
            add(run(*last))
            if sums is not None and others:
                sums.take_from(pieces[-1].values())
        outputs = {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}
        if learns and divided:
            gather_once_in_backward(divided, pieces[-1].values(), pieces[0].values())
        elif learns and reads is None:
            return outputs, _reads(pieces[-1], layers)
        return outputs, reads

    return finish


def _again(
    run: Run, rows: Inputs, hidden: Tensor | None, reads: Reads, sums: GradientSums
) -> dict[str, Tensor]:
    names: list[str] = []
    outputs = _Again.apply(run, rows, hidden, reads, names, sums, sums.token)
    return dict(zip(names, outputs, strict=True))


class _Again(torch.autograd.Function):
    """A piece whose backward pass runs it again."""

    @staticmethod
    def forward(
        ctx: Context,
        run: Run,
        rows: Inputs,
        hidden: Tensor | None,
        reads: Reads,
        names: list[str],
        sums: GradientSums,
        token: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.rows, ctx.hidden = run, rows, hidden
        ctx.weights, ctx.sums = reads.weights, sums
        some = rows if isinstance(rows, Tensor) else next(iter(rows.values()))
        ctx.device = some.device
        ctx.random = torch.get_rng_state()
        ctx.device_random = torch.cuda.get_rng_state(ctx.device) if some.is_cuda else None
        ctx.autocast = (
            torch.is_autocast_enabled(some.device.type),
            torch.get_autocast_dtype(some.device.type),
        )
        found = run(rows, hidden)
        names.extend(found)
        # Two names may refer to one tensor, and a node has each of its outputs once.
        seen: set[int] = set()
        outputs = []
        for value in found.values():
            outputs.append(value.view_as(value) if id(value) in seen else value)
            seen.add(id(value))
        ctx.mark_non_differentiable(
            *(
                value
                for name, value in zip(found, outputs, strict=True)
                if name not in reads.learning
            )
        )
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[None, ...]:
        enabled, dtype = ctx.autocast
        devices = [ctx.device] if ctx.device_random is not None else []
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.set_rng_state(ctx.random)
            if ctx.device_random is not None:
                torch.cuda.set_rng_state(ctx.device_random, ctx.device)
            with torch.autocast(ctx.device.type, dtype=dtype, enabled=enabled):
                outputs = ctx.run(ctx.rows, ctx.hidden).values()
        pairs = [
            (output, grad)
            for output, grad in zip(outputs, grads, strict=True)
            if output.requires_grad and grad is not None
        ]
        if pairs:
            learning, their = zip(*pairs, strict=True)
            ctx.sums.take_from(learning)
            with without_hooks(ctx.weights):
                torch.autograd.grad(learning, ctx.weights, their, allow_unused=True)
        return (None,) * 7


def _reads(outputs: Mapping[str, Tensor], layers: Sequence[nn.Module]) -> Reads:
    """The weights that outputs depend on, from their graph, and those of the layers."""
    learning = frozenset(name for name, output in outputs.items() if output.requires_grad)
    every = (one for layer in layers for one in layer.parameters() if one.requires_grad)
    weights: dict[int, Tensor] = {id(one): one for one in every}
    for _, leaves in nodes_before_leaves(outputs[name] for name in learning):
        weights |= {id(leaf): leaf for _, leaf in leaves}
    return Reads(tuple(weights.values()), learning)


def _joined(pieces: list[Tensor]) -> Tensor:
    """Outputs of all pieces. Selected positions are `[n, m, E]` if every picture of a piece has
    equally many, and become `[M, E]` if that does not hold for all pieces."""
    if len({piece.shape[1:] for piece in pieces}) > 1:
        pieces = [piece.flatten(0, 1) if piece.ndim == 3 else piece for piece in pieces]
    return torch.cat(pieces)


def refuse_batch_statistics(name: str, tower: nn.Module) -> None:
    """Refuse batch norms that would see a piece instead of the batch.

    Raises:
        RecipeError: the tower has one in training mode; names it and what to do.
    """
    was_training = tower.training
    tower.train()
    learning = [
        norm
        for norm, module in tower.named_modules()
        if isinstance(module, _BatchNorm) and module.training
    ]
    tower.train(was_training)
    if learning:
        raise RecipeError(
            f"train.chunk: tower '{name}' has trainable batch norms ({learning[0]}), and their"
            " statistics would be those of a chunk, not of the batch. Use a model and heads"
            " without batch norms, freeze the model (train: head or none) or its statistics"
            " (freeze_batch_norm_stats: true), or remove train.chunk."
        )


def _pieces(
    inputs: Inputs, hidden: Tensor | None, size: int
) -> Iterator[tuple[Inputs, Tensor | None]]:
    count = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
    for first in range(0, count, size):
        part = slice(first, first + size)
        rows = (
            inputs[part]
            if isinstance(inputs, Tensor)
            else {key: value[part] for key, value in inputs.items()}
        )
        yield rows, None if hidden is None else hidden[part]
