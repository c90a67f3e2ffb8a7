"""Where queries, keys and values are in layers that make several of them at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.errors import RecipeError

FUSED: dict[str, str] = {
    "qkv": "qkv",
    "Wqkv": "qkv",
    "qkv_proj": "qkv",
    "to_qkv": "qkv",
    "kv": "kv",
    "qk": "qk",
    "in_proj": "qkv",
    "query_key_value": "qkv",
}
"""Such layers, by the last part of their name, with what they make."""
_UNKNOWN = ("CodeGen", "Falcon")
"""What begins the classes of attention that divide such a layer in ways of their own."""
_BY_HEAD = (
    ("in_proj", "attention_head_size"),
    ("query_key_value", "head_size"),
    ("query_key_value", "head_dim"),
)
"""Layers of transformers that are divided by heads, with the attribute for the width of a head."""
_OUTPUTS = ("proj", "out_proj", "o_proj", "Wo", "c_proj", "merge")

Segments = list[tuple[str, int]]
"""Consecutive rows of a fused weight: q, k, v or something else (""), and how many rows."""


def segments(attention: nn.Module, name: str, rows: int) -> Segments | None:
    """What the rows of a fused layer make, in their order; None where the order is not known.

    There are three orders: all queries, then all keys, then all values; head by head (MaxViT,
    CoAtNet, TinyViT, EfficientFormer, DeBERTa, Bloom, GPT-NeoX); and after the rows of an MLP
    (timm's parallel blocks).

    Args:
        attention: the module that holds the layer.
        name: of the layer in it.
        rows: of its weight.
    """
    own: Any = attention
    words = FUSED[name]
    if type(attention).__name__.startswith(_UNKNOWN):
        return None
    if isinstance(split := getattr(own, "in_split", None), list) and sum(split) == rows:
        return [("", split[0]), *zip(words, split[1:], strict=True)]
    if head := _head(own, words):
        count = rows // sum(head.values())
        return [*head.items()] * count if rows == count * sum(head.values()) else None
    projection = next((part for key in _OUTPUTS if (part := getattr(own, key, None))), None)
    width = getattr(projection, "weight", torch.empty(1, rows // len(words))).shape[1]
    if name == "qkv" and rows == 2 * width:
        words = "kv"  # GCViT's blocks with global queries
    return [(word, width) for word in words] if rows == width * len(words) else None


def is_by_head(attention: nn.Module, name: str) -> bool:
    """Whether a fused layer holds what it makes head by head, so that its leading rows are leading
    heads."""
    return bool(_head(attention, FUSED[name]))


def _head(own: Any, words: str) -> dict[str, int]:
    """The rows of one head; nothing where a layer is not divided by heads."""
    for layer, name in _BY_HEAD:
        if hasattr(own, layer) and isinstance(size := getattr(own, name, None), int):
            return dict.fromkeys(words, size)
    if getattr(own, "head_first", False):
        return dict.fromkeys(words, int(own.dim_head))
    if isinstance(getattr(own, "key_dim", None), int) and hasattr(own, "val_dim"):
        return {word: int(own.val_dim if word == "v" else own.key_dim) for word in words}
    return {}


def rows_of(found: Segments | None, chosen: set[str], layer: str) -> Tensor | None:
    """The rows of a fused weight that belong to some of its words, bool; None: all of them.

    Args:
        chosen: the words.
        layer: its name, for messages.

    Raises:
        RecipeError: some are wanted, and their order is not known.
    """
    if found is None:
        if chosen >= set(FUSED[layer.rpartition(".")[2]]):
            return None
        raise RecipeError(
            f"adapter.targets: '{layer}' holds queries, keys and values in an order that vlkd does"
            " not know. Name all of q, k, v, or leave it out."
        )
    if chosen >= {word for word, _ in found}:
        return None
    return torch.cat([torch.full((rows,), word in chosen) for word, rows in found])
