"""A student's weights taken from its teacher: some of its layers, and the leading channels.

Source: Wu et al., TinyCLIP: CLIP Distillation via Affinity Mimicking and Weight Inheritance, ICCV
2023, section 3.3 (manual inheritance); wkcn/TinyCLIP, src/open_clip/weight_inherit.py. Differs in
that positions and patch kernels are resized, and vocabularies are matched by token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.types import LayerChoice

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_FUSED = ("in_proj_weight", "in_proj_bias", "qkv", "Wqkv", "qkv_proj", "c_attn")
"""Names of tensors that hold queries, keys and values one after another. Those called
query_key_value hold them head by head, so that leading rows are leading heads."""
_PAIRED = ("weights_in", "w12", "Wi", "gate_up_proj", "kv")
"""Names of those that hold a gate and what it multiplies, or keys and values."""
_POSITIONS = ("pos_embed", "positional_embedding", "position_embedding", "position_embeddings")
_TOKENS = ("token_embedding", "word_embeddings", "embed_tokens", "wte")


class Inherited(NamedTuple):
    """What a tower took from another, for the log."""

    source: str
    layers: tuple[int, ...]
    fraction: float

    def __str__(self) -> str:
        layers = f" layers {', '.join(map(str, self.layers))}," if self.layers else ""
        return f"inherits from '{self.source}':{layers} {self.fraction:.1%} of its parameters"


@torch.no_grad()
def inherit(
    student: Backbone, teacher: Backbone, choice: LayerChoice, source: str, name: str = "student"
) -> Inherited:
    """Copy the teacher's weights into the student, in place.

    Tensors of equal names are paired, blocks by the choice of layers. Of each dimension the leading
    part is taken, of fused queries, keys and values that of each.

    Args:
        choice: which of the teacher's blocks.
        source: name of the teacher's tower, for messages.
        name: of the student's.

    Raises:
        RecipeError: a tensor of the student has no counterpart, or is larger than it; or heads
            differ in width.
    """
    what = f"towers.{name}.init: '{source}'"
    if type(student) is not type(teacher):
        raise RecipeError(f"{what} is of another builder. Inherit from a tower of the same one.")
    _refuse_other_heads(student, teacher, what)
    ours, theirs = student.state_dict(), teacher.state_dict()
    blocks = _chosen_blocks(list(ours), list(theirs), choice, what)
    fit = _Fit(isinstance(student.input, ImageInput), _same_tokens(student, teacher))
    taken = 0
    for key, tensor in ours.items():
        if not tensor.is_floating_point():
            continue
        counterpart = theirs.get(_renamed(key, blocks))
        if counterpart is None:
            raise RecipeError(f"{what} has no '{_renamed(key, blocks)}'. Choose other layers.")
        placed = _placed(key, counterpart, tensor, fit, _parts(_renamed(key, blocks), theirs))
        if placed is None:
            raise RecipeError(
                f"{what}: '{key}' is {list(tensor.shape)} here and {list(counterpart.shape)}"
                " there. A student inherits from a teacher that is at least as large."
            )
        tensor.copy_(placed)
        taken += tensor.numel()
    total = sum(tensor.numel() for tensor in ours.values() if tensor.is_floating_point())
    main = _main_container(list(ours))
    return Inherited(source, tuple(blocks.get(main, ())), taken / max(total, 1))


class _Fit(NamedTuple):
    """How a student's inputs relate to its teacher's.

    Args:
        has_grid: whether positions are those of a picture's patches.
        tokens: rows of the student's and of the teacher's token table that belong to the same
            token; None where a vocabulary cannot be read.
    """

    has_grid: bool
    tokens: tuple[Tensor, Tensor] | None


def choose_layers(count: int, of: int, choice: LayerChoice) -> list[int]:
    """Which of a teacher's blocks a student of `count` blocks takes.

    Args:
        of: how many the teacher has.
        choice: `even`: every s-th from the first, s = floor(of / count), as TinyCLIP does; `first`;
            `last`; `every N`; or their numbers, from 0.

    Raises:
        ValueError: the teacher has too few.
    """
    if isinstance(choice, str) and choice.startswith("every "):
        found = list(range(0, of, int(choice.removeprefix("every "))))[:count]
    elif isinstance(choice, str):
        if of < count:
            raise ValueError(f"has {of} layers for {count}")
        step = of // count if choice == "even" else 1
        start = of - count if choice == "last" else 0
        found = list(range(start, of, step))[:count]
    else:
        found = [number for number in choice if 0 <= number < of]
        if len(found) < len(choice):
            raise ValueError(f"has {of} layers, numbered from 0")
    if len(found) != count:
        raise ValueError(f"gives {len(found)} layers for {count}")
    return found


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


def _parts(name: str, state: Mapping[str, Tensor]) -> int:
    """How many tensors of one size a tensor of the teacher holds one after another."""
    if _names(name, _FUSED):
        return 3
    # timm's gated MLPs share their names with plain ones.
    block, is_first, _ = name.rpartition(".fc1.")
    after = state.get(f"{block}.fc2.weight") if is_first and name in state else None
    is_packed = after is not None and len(state[name]) == 2 * after.shape[1]
    return 2 if is_packed or _names(name, _PAIRED) else 1


def _placed(name: str, tensor: Tensor, own: Tensor, fit: _Fit, parts: int) -> Tensor | None:
    """The teacher's tensor in the shape of the student's; None where it does not fit.

    Args:
        parts: how many tensors it holds.
    """
    shape = own.shape
    if _names(name, _TOKENS) and fit.tokens is not None and tensor.shape[0] != shape[0]:
        return _by_token(tensor, own, *fit.tokens)
    if _names(name, _POSITIONS):
        tensor = _resized_positions(tensor, shape, has_grid=fit.has_grid)
    elif tensor.ndim == 4 and tensor.shape[1] == 3 and tensor.shape[2:] != shape[2:]:
        tensor = _resized_kernel(tensor, (int(shape[2]), int(shape[3])))
    elif _is_linear_patch(name, tensor, shape):
        tensor = _resized_linear(tensor, int(shape[1]))
    return leading(tensor, shape, parts, dim=-1 if "c_attn.weight" in name else 0)


def _by_token(tensor: Tensor, own: Tensor, ours: Tensor, theirs: Tensor) -> Tensor | None:
    """A token table; tokens that the teacher lacks stay as they are."""
    there = (ours < len(own)) & (theirs < len(tensor))
    cut = leading(tensor[theirs[there]], (int(there.sum()), *own.shape[1:]))
    return None if cut is None else own.clone().index_copy_(0, ours[there], cut)


def _names(name: str, words: Sequence[str]) -> bool:
    return any(part in words for part in name.split("."))


def _resized_positions(tensor: Tensor, shape: torch.Size, *, has_grid: bool) -> Tensor:
    """Positions of a square grid after class and register tokens, or of a sequence, which is cut or
    interpolated."""
    there, here = tensor.shape[-2], shape[-2]
    if there == here or tensor.ndim not in (2, 3):
        return tensor
    for prefix in range(3) if has_grid else ():
        old, new = ((count - prefix) ** 0.5 for count in (there, here))
        if old == int(old) and new == int(new) and old >= 2 and new >= 1:
            rows = tensor.view(-1, there, tensor.shape[-1])
            grid = rows[:, prefix:].transpose(1, 2).unflatten(2, (int(old), int(old)))
            grid = F.interpolate(grid, (int(new), int(new)), mode="bicubic", antialias=True)
            joined = torch.cat([rows[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)
            return joined.view(*tensor.shape[:-2], here, tensor.shape[-1])
    if here < there:
        return tensor[..., :here, :]
    rows = tensor.view(-1, there, tensor.shape[-1]).transpose(1, 2)
    longer = F.interpolate(rows, here, mode="linear").transpose(1, 2)
    return longer.view(*tensor.shape[:-2], here, tensor.shape[-1])


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


def _chosen_blocks(
    ours: list[str], theirs: list[str], choice: LayerChoice, what: str
) -> dict[str, list[int]]:
    """For each container of numbered blocks the teacher's number of each block."""
    sizes, other = dict(_containers(ours)), dict(_containers(theirs))
    main = _main_container(ours)
    chosen: dict[str, list[int]] = {}
    for prefix, count in sizes.items():
        rule: LayerChoice = choice if prefix == main else "even"
        # The teacher's name of a container inside of chosen blocks.
        of = other.get(_renamed(f"{prefix}.", chosen).rstrip("."), 0)
        if prefix != main and (of == count or not of):
            continue
        try:
            chosen[prefix] = choose_layers(count, of, rule)
        except ValueError as error:
            raise RecipeError(f"{what}: layers: {choice}: '{prefix}' {error}.") from error
    return chosen


def _containers(names: list[str]) -> Iterator[tuple[str, int]]:
    """Prefixes of numbered modules and how many there are, outer ones first."""
    found: dict[str, int] = {}
    for name in names:
        for match in _NUMBER.finditer(name):
            prefix = name[: match.start() - 1]
            found[prefix] = max(found.get(prefix, 0), int(match.group()) + 1)
    yield from sorted(found.items(), key=lambda item: item[0].count("."))


def _main_container(names: list[str]) -> str:
    """The outermost container that most tensors are in."""
    counts: dict[str, int] = {}
    for name in names:
        match = _NUMBER.search(name)
        if match is not None:
            prefix = name[: match.start() - 1]
            counts[prefix] = counts.get(prefix, 0) + 1
    return max(counts, key=counts.__getitem__, default="")


def _renamed(name: str, blocks: Mapping[str, Sequence[int]]) -> str:
    """The teacher's name of a tensor."""
    renamed, last = "", 0
    for match in _NUMBER.finditer(name):
        numbers = blocks.get(name[: match.start() - 1])
        number = int(match.group())
        renamed += name[last : match.start()] + str(numbers[number] if numbers else number)
        last = match.end()
    return renamed + name[last:]


def _refuse_other_heads(student: nn.Module, teacher: nn.Module, what: str) -> None:
    ours, theirs = _head_widths(student), _head_widths(teacher)
    if ours and theirs and ours != theirs:
        raise RecipeError(
            f"{what}: its attention heads are {_shown(theirs)} channels wide and the student's"
            f" {_shown(ours)}. Choose the student's width and heads so that they agree."
        )


def _head_widths(network: nn.Module) -> set[int]:
    found = set()
    for module in network.modules():
        own: Any = module
        heads = next(
            (
                value
                for key in ("num_heads", "num_attention_heads", "n_heads")
                if isinstance(value := getattr(own, key, None), int) and value
            ),
            None,
        )
        if heads is None:
            continue
        width = getattr(own, "head_dim", None) or getattr(own, "attention_head_size", None)
        if not isinstance(width, int):
            total = getattr(own, "embed_dim", None) or getattr(own, "hidden_size", None)
            width = total // heads if isinstance(total, int) else None
        if width is not None:
            found.add(width)
    return found


def _shown(widths: set[int]) -> str:
    return " and ".join(map(str, sorted(widths)))


def _same_tokens(student: Backbone, teacher: Backbone) -> tuple[Tensor, Tensor] | None:
    ours, theirs = _vocabulary(student.input), _vocabulary(teacher.input)
    if ours is None or theirs is None:
        return None
    shared = [(row, theirs[token]) for token, row in ours.items() if token in theirs]
    rows = torch.tensor(shared, dtype=torch.long).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _vocabulary(tokenize: Any) -> dict[str, int] | None:
    """Token to row of the table."""
    encoder = getattr(getattr(tokenize, "_bpe", None), "encoder", None)
    if isinstance(encoder, dict):
        # In a smaller vocabulary the last two rows are start and end, not the library's tokens.
        start, shift = tokenize._start, tokenize.shift
        readable = {
            token: row
            for token, row in encoder.items()
            if row < start or token in ("<start_of_text>", "<end_of_text>")
        }
        return {token: row + shift for token, row in readable.items()}
    inner: Any = getattr(tokenize, "tokenizer", None)
    for _ in range(3):
        if hasattr(inner, "get_vocab"):
            vocabulary: dict[str, int] = inner.get_vocab()
            return vocabulary
        inner = getattr(inner, "tokenizer", None)
    return None
