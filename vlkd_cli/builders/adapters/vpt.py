"""Learned prompts among the patches of a vision transformer (visual prompt tuning)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.builders.adapters.methods.visual_prompts import VPT
from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.builders.padding import probing
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Grid, ImageInput

REMEDY = (
    "It needs a vision transformer whose blocks attend to all tokens, with positions added before"
    " them. Choose adapter lora."
)
"""What to do about a network that prompts do not fit into."""


Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, ...])
Named = dict[str, Tensor]


class Prompts(nn.Module):
    """Prompts that hooks on a network's blocks insert, replace and remove again.

    They are inserted after class and register tokens and before the patches, without positions.

    Args:
        depth: blocks that get prompts of their own; 1 where they are carried on.
        tokens: prompts in a block.
        width: of a token.
        patch_px: side of a patch, which the start depends on.
        prefix: class and register tokens.
        dropout: of the prompts in training.

    Source: Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv:2203.12119, section 3.2; KMnP/vpt,
        src/models/vit_prompt/vit.py.
    """

    def __init__(
        self, depth: int, tokens: int, width: int, patch_px: int, prefix: int, dropout: float
    ) -> None:
        super().__init__()
        self.prefix, self.tokens, self.dropout = prefix, tokens, dropout
        self.vectors = nn.Parameter(torch.empty(depth, tokens, width))
        bound = math.sqrt(6 / (3 * patch_px**2 + width))
        nn.init.uniform_(self.vectors, -bound, bound)

    def attach(self, blocks: list[nn.Module]) -> None:
        """Hook the blocks, the first of which inserts prompts and the last of which removes
        them."""
        for number, block in enumerate(blocks):
            if number == 0:
                block.register_forward_pre_hook(_Entry(self, 0, first=True), with_kwargs=True)
            elif number < len(self.vectors):
                block.register_forward_pre_hook(_Entry(self, number, first=False), with_kwargs=True)
        blocks[-1].register_forward_hook(self._remove)

    def placed(self, states: Tensor, number: int, *, first: bool) -> Tensor:
        """Tokens `[B, T, D]` with the prompts of a block in their positions."""
        own = F.dropout(self.vectors[number], self.dropout, self.training).to(states.dtype)
        behind = self.prefix + (0 if first else self.tokens)
        own = own.expand(states.shape[0], -1, -1)
        return torch.cat([states[:, : self.prefix], own, states[:, behind:]], dim=1)

    def _remove(self, block: nn.Module, given: object, output: Outputs) -> Outputs:
        states = output[0] if isinstance(output, tuple) else output
        behind = self.prefix + self.tokens
        own = torch.cat([states[:, : self.prefix], states[:, behind:]], dim=1)
        return (own, *output[1:]) if isinstance(output, tuple) else own


class _Entry:
    """The hook before a block."""

    def __init__(self, prompts: Prompts, number: int, *, first: bool) -> None:
        self.prompts, self.number, self.first = prompts, number, first

    def __call__(
        self, block: nn.Module, given: tuple[Tensor, ...], named: Named
    ) -> tuple[tuple[Tensor, ...], Named]:
        if given:
            placed = self.prompts.placed(given[0], self.number, first=self.first)
            return (placed, *given[1:]), named
        placed = self.prompts.placed(named["hidden_states"], self.number, first=self.first)
        return given, {**named, "hidden_states": placed}


def attach_prompts(backbone: Backbone, method: VPT, what: str) -> None:
    """Give an image backbone prompts of its own.

    Raises:
        RecipeError: it is not a vision transformer of the plain kind.
    """
    if not isinstance(backbone.input, ImageInput):
        raise RecipeError(f"{what}: is for image towers. Choose lora.")
    grid = backbone.grid(backbone.input.size_px)
    blocks = find_blocks(backbone.encoder)  # type: ignore[arg-type]
    prefix, width = _measured(backbone, blocks, grid, what)
    assert grid is not None
    chosen = blocks if method.last is None else blocks[-method.last :]
    if method.last is not None and method.last > len(blocks):
        raise RecipeError(f"{what}: last: {method.last}: the network has {len(blocks)} blocks.")
    depth = len(chosen) if method.deep else 1
    prompts = Prompts(depth, method.tokens, width, grid.patch_px, prefix, method.dropout)
    prompts.attach(chosen)
    backbone.add_module("vlkd_prompts", prompts)


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the longest row of modules of one class that attend."""
    rows = [
        list(module.children())
        for module in network.modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList))
    ]
    alike = [
        row for row in rows if row and len({type(block) for block in row}) == 1 and _attends(row[0])
    ]
    return max(alike, key=len, default=[])


def _attends(block: nn.Module) -> bool:
    return any("att" in name for name, _ in block.named_modules())


def _measured(
    backbone: Backbone, blocks: list[nn.Module], grid: Grid | None, what: str
) -> tuple[int, int]:
    """Number of prefix tokens and width, from a trial run in which every block must see only class
    tokens and patches."""
    seen: list[tuple[int, ...]] = []
    extras: list[str] = []

    def look(block: nn.Module, given: tuple[object, ...], named: Mapping[str, object]) -> None:
        states = given[0] if given else named.get("hidden_states")
        seen.append(tuple(states.shape) if isinstance(states, Tensor) else ())
        extras.extend(
            name
            for name, value in named.items()
            if name in ("attn_mask", "attention_mask", "rope", "position_embeddings")
            and value is not None
        )
        extras.extend("argument" for value in given[1:] if value is not None)

    hooks = [block.register_forward_pre_hook(look, with_kwargs=True) for block in blocks]
    try:
        # In training mode a batch norm would take in this picture, or refuse a single one.
        with probing(backbone):
            image = backbone.input
            assert isinstance(image, ImageInput)
            device = next(backbone.parameters()).device
            encoded = backbone(torch.zeros(1, 3, *image.size_px, device=device), tokens=True)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = encoded.tokens
    if grid is None or tokens is None or len(seen) != len(blocks) or not blocks:
        raise RecipeError(f"{what}: is not for this network. {REMEDY}")
    expected = (1, tokens.prefix + grid.num_places, tokens.values.shape[2])
    if extras or any(shape != expected for shape in seen):
        raise RecipeError(f"{what}: is not for this network. {REMEDY}")
    return tokens.prefix, int(expected[2])
