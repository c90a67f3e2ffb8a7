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
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.types import LayerChoice
from vlkd_cli.towers.cut import Fit, by_pieces, parts_of, placed, splits

_NUMBER = re.compile(r"(?<=[._])\d+(?=\.)")
"""The number of a block in the name of a tensor; torchvision's ViTs write encoder_layer_0."""


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
    fit = _fit(student, teacher)
    split_here, split_there = splits(student), splits(teacher)
    taken = 0
    for key, tensor in ours.items():
        if not tensor.is_floating_point():
            continue
        there = _renamed(key, blocks)
        counterpart = theirs.get(there)
        if counterpart is None:
            raise RecipeError(f"{what} has no '{there}'. Choose other layers.")
        if key in split_here and there in split_there:
            cut = by_pieces(counterpart, tensor.shape, split_there[there], split_here[key])
        else:
            cut = placed(key, counterpart, tensor, fit, parts_of(there, theirs))
        if cut is None:
            raise RecipeError(
                f"{what}: '{key}' is {list(tensor.shape)} here and {list(counterpart.shape)}"
                " there. A student inherits from a teacher that is at least as large."
            )
        tensor.copy_(cut)
        taken += tensor.numel()
    total = sum(tensor.numel() for tensor in ours.values() if tensor.is_floating_point())
    main = _main_container(list(ours))
    return Inherited(source, tuple(blocks.get(main, ())), taken / max(total, 1))


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


def _chosen_blocks(
    ours: list[str], theirs: list[str], choice: LayerChoice, what: str
) -> dict[str, list[int]]:
    """For each container of numbered blocks the teacher's number of each block.

    Where a network has stages, the choice is made in each stage that is shorter.
    """
    sizes, other = dict(_containers(ours)), dict(_containers(theirs))
    chosen_by = _chosen_containers(sizes, other, _main_container(ours))
    if isinstance(choice, list) and len(chosen_by) > 1:
        raise RecipeError(
            f"{what}: layers: {choice}: several of its stages are longer"
            f" ({', '.join(sorted(chosen_by))}), and numbers are for one. Write even, first, last"
            " or every N."
        )
    chosen: dict[str, list[int]] = {}
    for prefix, count in sizes.items():
        rule: LayerChoice = choice if prefix in chosen_by else "even"
        # The teacher's name of a container inside of chosen blocks.
        of = other.get(_renamed(f"{prefix}.", chosen).rstrip("."), 0)
        if prefix not in chosen_by and (of == count or not of):
            continue
        try:
            chosen[prefix] = choose_layers(count, of, rule)
        except ValueError as error:
            raise RecipeError(f"{what}: layers: {choice}: '{prefix}' {error}.") from error
    return chosen


def _chosen_containers(ours: Mapping[str, int], theirs: Mapping[str, int], main: str) -> set[str]:
    """The containers that a choice of layers is about: the outermost ones of which the networks
    have unequally many, such as the stages of a ResNet; the main one where all are equal."""
    unequal = [name for name, count in ours.items() if count != theirs.get(name, count)]
    outermost = {
        name for name in unequal if not any(name.startswith(f"{other}.") for other in unequal)
    }
    return outermost or {main}


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
        names = ("head_dim", "attention_head_size", "dim_head", "key_dim")
        width = next((value for key in names if (value := getattr(own, key, None))), None)
        if not isinstance(width, int):
            total = getattr(own, "embed_dim", None) or getattr(own, "hidden_size", None)
            width = total // heads if isinstance(total, int) else None
        if width is not None:
            found.add(width)
    return found


def _shown(widths: set[int]) -> str:
    return " and ".join(map(str, sorted(widths)))


def _fit(student: Backbone, teacher: Backbone) -> Fit:
    """How the inputs of the two relate."""
    ours, theirs = student.input, teacher.input
    if not isinstance(ours, ImageInput) or not isinstance(theirs, ImageInput):
        return Fit(False, _same_tokens(student, teacher))
    new, old = student.grid(ours.size_px), teacher.grid(theirs.size_px)
    return Fit(True, None, None if new is None or old is None else (old, new))


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
