"""A teacher's tensors in the shape of a smaller student's: leading channels, of joined tensors
those of each part, positions and patch kernels resized."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.builders.adapters.fused import FUSED, is_by_head, segments
from vlkd_cli.preprocessing import Grid

_FUSED = ("in_proj_weight", "in_proj_bias", "qkv", "Wqkv", "qkv_proj", "c_attn")
"""Names of tensors that hold queries, keys and values one after another. Those called
query_key_value hold them head by head, so that leading rows are leading heads."""
_PAIRED = ("weights_in", "w12", "Wi", "gate_up_proj", "kv")
"""Names of those that hold a gate and what it multiplies, or keys and values."""
_POSITIONS = (
    "pos_embed",
    "pos_embedding",
    "positional_embedding",
    "position_embedding",
    "position_embeddings",
)
_DISTANCES = ("relative_position_bias_table",)
"""Names of tensors with a row for each distance between two positions of a square window."""
_OFFSETS = ("attention_biases",)
"""Names of those with a column for each, in an order that depends on the size of the picture."""
_TOKENS = ("token_embedding", "word_embeddings", "embed_tokens", "wte")


class Fit(NamedTuple):
    """How a student's inputs relate to its teacher's.

    Args:
        has_grid: whether positions are those of a picture's patches.
        tokens: rows of the student's and of the teacher's token table that belong to the same
            token; None where a vocabulary cannot be read.
        grids: the teacher's and the student's; None where one of them has none.
    """

    has_grid: bool
    tokens: tuple[Tensor, Tensor] | None
    grids: tuple[Grid, Grid] | None = None


def placed(name: str, tensor: Tensor, own: Tensor, fit: Fit, parts: int) -> Tensor | None:
    """The teacher's tensor in the shape of the student's; None where it does not fit.

    Args:
        parts: how many tensors it holds.
    """
    shape = own.shape
    if _names(name, _TOKENS) and fit.tokens is not None and tensor.shape[0] != shape[0]:
        return _by_token(tensor, own, *fit.tokens)
    if _names(name, _DISTANCES) and tensor.shape[0] != shape[0]:
        resized = _resized_distances(tensor, shape[0])
        return None if resized is None else leading(resized, shape)
    if _names(name, _OFFSETS) and tensor.shape[-1] != shape[-1]:
        return None
    if _names(name, _POSITIONS):
        tensor = _resized_positions(tensor, shape, fit)
    elif tensor.ndim == 4 and tensor.shape[1] == 3 and tensor.shape[2:] != shape[2:]:
        tensor = _resized_kernel(tensor, (int(shape[2]), int(shape[3])))
    elif _is_linear_patch(name, tensor, shape):
        tensor = _resized_linear(tensor, int(shape[1]))
    return leading(tensor, shape, parts, dim=-1 if "c_attn.weight" in name else 0)


def leading(tensor: Tensor, shape: Sequence[int], parts: int = 1, dim: int = 0) -> Tensor | None:
    """The leading part of each dimension; None where the tensor is too small.

    Args:
        parts: how many tensors are joined along `dim`, each of which gives its leading part.
    """
    if tensor.ndim != len(shape) or any(
        own < wanted for own, wanted in zip(tensor.shape, shape, strict=True)
    ):
        return None
    if parts > 1 and tensor.shape[dim] != shape[dim]:
        sizes = list(shape)
        sizes[dim] //= parts
        cut = [leading(part, sizes) for part in tensor.chunk(parts, dim)]
        return torch.cat([part for part in cut if part is not None], dim)
    return tensor[tuple(slice(size) for size in shape)]


def by_pieces(
    tensor: Tensor, shape: Sequence[int], there: Sequence[int], here: Sequence[int]
) -> Tensor | None:
    """The leading part of each of several pieces along the rows; None where it does not fit.

    Args:
        there, here: rows of each piece; none where they are not known.
    """
    if not there or not here:
        return leading(tensor, shape) if tensor.shape[0] == shape[0] else None
    cut = [
        leading(piece, (rows, *shape[1:]))
        for piece, rows in zip(tensor.split(list(there)), here, strict=True)
    ]
    found = [piece for piece in cut if piece is not None]
    return torch.cat(found) if len(found) == len(cut) else None


def splits(network: nn.Module) -> dict[str, list[int]]:
    """Rows of the pieces of tensors that hold queries, keys and values: one piece where they are
    held head by head, since leading rows are leading heads; none where the order is not known."""
    found: dict[str, list[int]] = {}
    for name, module in network.named_modules():
        parent, _, last = name.rpartition(".")
        if last not in FUSED or not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        holder, rows = network.get_submodule(parent), len(module.weight)
        pieces = [rows for _, rows in segments(holder, last, rows) or []]
        own = [rows] if is_by_head(holder, last) else pieces
        found |= {f"{name}.weight": own, f"{name}.bias": own}
    return found


def parts_of(name: str, state: Mapping[str, Tensor]) -> int:
    """How many tensors of one size a tensor of the teacher holds one after another."""
    if _names(name, _FUSED):
        return 3
    # timm's gated MLPs share their names with plain ones.
    block, is_first, _ = name.rpartition(".fc1.")
    after = state.get(f"{block}.fc2.weight") if is_first and name in state else None
    is_packed = after is not None and len(state[name]) == 2 * after.shape[1]
    return 2 if is_packed or _names(name, _PAIRED) else 1


def _by_token(tensor: Tensor, own: Tensor, ours: Tensor, theirs: Tensor) -> Tensor | None:
    """A token table; tokens that the teacher lacks stay as they are."""
    there = (ours < len(own)) & (theirs < len(tensor))
    cut = leading(tensor[theirs[there]], (int(there.sum()), *own.shape[1:]))
    return None if cut is None else own.clone().index_copy_(0, ours[there], cut)


def _names(name: str, words: Sequence[str]) -> bool:
    return any(part in words for part in name.split("."))


def _resized_positions(tensor: Tensor, shape: torch.Size, fit: Fit) -> Tensor:
    """Positions of a grid after class and register tokens, or of a sequence, which is cut or
    interpolated."""
    there, here = tensor.shape[-2], shape[-2]
    if tensor.ndim not in (2, 3):
        return tensor
    for prefix, old, new in _grids(there, here, fit):
        if old == new:
            return tensor
        rows = tensor.view(-1, there, tensor.shape[-1])
        grid = rows[:, prefix:].transpose(1, 2).unflatten(2, old)
        grid = F.interpolate(grid, new, mode="bicubic", antialias=True)
        joined = torch.cat([rows[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)
        return joined.view(*tensor.shape[:-2], here, tensor.shape[-1])
    if here <= there:
        return tensor[..., :here, :]
    rows = tensor.view(-1, there, tensor.shape[-1]).transpose(1, 2)
    longer = F.interpolate(rows, here, mode="linear").transpose(1, 2)
    return longer.view(*tensor.shape[:-2], here, tensor.shape[-1])


def _grids(
    there: int, here: int, fit: Fit
) -> Iterator[tuple[int, tuple[int, int], tuple[int, int]]]:
    """How many tokens may precede the positions, and the grids that the others may be on: those of
    the encoders' outputs, else squares, as hierarchical encoders have more positions than
    outputs."""
    if fit.grids is not None:
        old, new = fit.grids
        prefix = there - old.num_places
        if prefix == here - new.num_places and prefix >= 0:
            yield prefix, (old.rows, old.columns), (new.rows, new.columns)
    for prefix in range(3) if fit.has_grid and there != here else ():
        sides = [math.isqrt(max(count - prefix, 0)) for count in (there, here)]
        squares = [side * side + prefix for side in sides]
        if squares == [there, here] and sides[0] >= 2 and sides[1] >= 1:
            yield prefix, (sides[0], sides[0]), (sides[1], sides[1])


def _resized_distances(tensor: Tensor, rows: int) -> Tensor | None:
    """A row for each distance within a square window of another size; the last three of BEiT are
    those of its class token. None for windows that are not square."""
    for last in (0, 3):
        old, new = ((count - last) ** 0.5 for count in (len(tensor), rows))
        if old == int(old) and new == int(new):
            grid = tensor[: len(tensor) - last].T.unflatten(1, (int(old), int(old)))[None]
            grid = F.interpolate(grid, (int(new), int(new)), mode="bicubic", antialias=True)
            return torch.cat([grid[0].flatten(1).T, tensor[len(tensor) - last :]])
    return None


def _resized_kernel(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """A patch kernel that answers a picture of another size as before: its sum stays."""
    resized = F.interpolate(tensor, size, mode="bicubic", antialias=True)
    return resized * (tensor.shape[2] * tensor.shape[3] / (size[0] * size[1]))


def _is_linear_patch(name: str, tensor: Tensor, shape: torch.Size) -> bool:
    """Whether it maps patches of another size, flattened, as SigLIP 2's does."""
    is_patch = _names(name, ("patch_embedding",)) and tensor.ndim == 2 and len(shape) == 2
    return is_patch and tensor.shape[1] != shape[1]


def _resized_linear(tensor: Tensor, values: int) -> Tensor:
    """The same for `[D, p * p * 3]`, channels last within a patch."""
    old, new = (round((count / 3) ** 0.5) for count in (tensor.shape[1], values))
    kernel = tensor.view(-1, old, old, 3).permute(0, 3, 1, 2)
    return _resized_kernel(kernel, (new, new)).permute(0, 2, 3, 1).flatten(1)
