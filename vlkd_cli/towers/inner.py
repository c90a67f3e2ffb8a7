"""Outputs of a backbone's inner layers, `layers.N` and `layers.N.pooled`, from the same run as its
feature and tokens.

`layers.N` is what block (or stage) N gives before any norm, block 1 being the first; `layers.0` is
what the first block gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone, Tokens
from vlkd_cli.builders.padding import probing
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput, Inputs
from vlkd_cli.recipe.address import LAYER, layer_of

_BLOCK = re.compile(r"(encoder_layer_)?\d+")  # torchvision's ViTs write the word
_BEFORE_BLOCKS = ("patch_embed", "stem")


def layer_names(outputs: Collection[str]) -> list[str]:
    """The outputs that are inner layers."""
    return [name for name in outputs if LAYER.fullmatch(name)]


LayerOutput = Tensor | tuple["LayerOutput", ...]


@contextmanager
def watched(backbone: Backbone, numbers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """What layers give while the backbone runs: by number, filled by the run.

    Raises:
        RecipeError: the backbone has fewer layers.
    """
    blocks, seen = _blocks(backbone), dict[int, Tensor]()

    def before(module: nn.Module, args: tuple[Tensor, ...], keys: dict[str, Tensor]) -> None:
        seen[0] = args[0] if args else keys["hidden_states"]

    def after(number: int) -> Callable[[nn.Module, object, LayerOutput], None]:
        def hook(module: nn.Module, args: object, output: LayerOutput) -> None:
            while isinstance(output, tuple):
                output = output[0]
            seen[number] = output

        return hook

    with ExitStack() as stack:
        for number in numbers:
            if number > len(blocks) or not blocks:
                raise RecipeError(f"layers.{number}: it has {len(blocks)} layers")
            handle = (
                blocks[0].register_forward_pre_hook(before, with_kwargs=True)
                if number == 0
                else blocks[number - 1].register_forward_hook(after(number))
            )
            stack.callback(handle.remove)
        yield seen


def inner_widths(backbone: Backbone, outputs: Collection[str]) -> dict[str, int]:
    """Widths of inner layers, from a run on one empty input.

    Raises:
        RecipeError: the backbone has fewer layers.
    """
    names = layer_names(outputs)
    if not names:
        return {}
    expected = backbone.input
    device = next(backbone.parameters()).device
    if isinstance(expected, ImageInput):
        inputs: Inputs = torch.zeros(1, 3, *expected.size_px, device=device)
    else:
        assert callable(expected)
        inputs = {key: value.to(device) for key, value in expected(["a"]).items()}
    with probing(backbone), watched(backbone, {layer_of(name) for name in names}) as seen:
        backbone(inputs)
    return {name: as_tokens(seen[layer_of(name)]).shape[-1] for name in names}


def as_tokens(values: Tensor) -> Tensor:
    """`[B, T, D]` of tokens, or of a map whose channels come second or last."""
    if values.ndim == 3:
        return values
    first = values.shape[2] == values.shape[3] or values.shape[1] != values.shape[2]
    return values.flatten(2).transpose(1, 2) if first else values.flatten(1, 2)


def pooled(backbone: Backbone, values: Tensor, tokens: Tokens | None) -> Tensor:
    """One row `[B, D]`, pooled as the tower pools its own tokens: the class or end token if it
    reads that one, else the mean over positions (of a text, over its real tokens).

    Args:
        values: `[B, T, D]`, prefix included.
        tokens: the backbone's own, whose mask, end and prefix describe the positions.
    """
    if tokens is None or tokens.values.shape[1] != values.shape[1]:
        return values.mean(1)
    if tokens.eot is not None:
        return values[torch.arange(len(values), device=values.device), tokens.eot]
    if tokens.prefix and not _averages(backbone):
        return values[:, 0]
    mask = tokens.mask[:, tokens.prefix :, None].to(values.dtype)
    return (values[:, tokens.prefix :] * mask).sum(1) / mask.sum(1).clamp_min(1)


def _averages(backbone: Backbone) -> bool:
    """Whether an image encoder with a class token pools its patches instead."""
    encoder = getattr(backbone, "encoder", None)
    family = getattr(backbone, "family", None)
    words = (
        getattr(encoder, "pool_type", None),
        getattr(encoder, "global_pool", None),
        getattr(family, "feature", None),
    )
    return any(word in ("avg", "mean") for word in words)


def _blocks(backbone: Backbone) -> list[nn.Module]:
    """The outermost numbered modules that have parts: blocks of a transformer, blocks or stages of
    a convolutional network. Lists are never called themselves, and what makes patches is not a
    block."""
    found: dict[str, nn.Module] = {}
    for name, module in backbone.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) or any(word in name for word in _BEFORE_BLOCKS):
            continue
        has_parts = any(True for _ in module.children()) and any(True for _ in module.parameters())
        if _BLOCK.fullmatch(name.rpartition(".")[2]) and has_parts and not inside:
            found[name] = module
    return list(found.values())
