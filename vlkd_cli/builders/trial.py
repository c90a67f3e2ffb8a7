"""A trial run of an image network at build, so that an image size that it cannot encode is
reported before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.padding import probing
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import TextInput

LARGEST_SIDE_PX = 8192
Found = TypeVar("Found")


def try_images(
    network: nn.Module,
    size_px: tuple[int, int],
    run: Callable[[Any, Tensor], Found],
    what: str,
) -> Found:
    """What `run` gives for the network and one picture of this height and width.

    The numbers mean nothing: where the network allows it, it is run without memory. It must give
    tensors whose first dimension is the batch.

    Raises:
        RecipeError: the network does not take such pictures.
    """
    height, width = size_px
    remedy = "Correct `config` or `image_size`."
    if not 0 < min(size_px) <= max(size_px) <= LARGEST_SIDE_PX:
        raise RecipeError(f"{what}: does not take images of {height} x {width} pixels. {remedy}")
    with probing(network):
        try:
            return _without_memory(network, size_px, run)
        # What a library holds outside of parameters and buffers is not copied: only a real run
        # shows whether the picture is the reason.
        except Exception:
            size = f"{height} x {width}"
            with one_line(f"{what}: does not encode RGB images of {size} pixels", remedy):
                return run(network, torch.zeros(1, 3, *size_px))


def try_texts(backbone: nn.Module, inputs: TextInput, what: str) -> None:
    """Run a text backbone once, without memory where it allows that.

    Raises:
        RecipeError: it does not encode them.
    """
    with probing(backbone):
        try:
            _shadow(backbone)({name: tensor.to("meta") for name, tensor in inputs.items()})
        # As with images, a real run decides.
        except Exception:
            with one_line(f"{what}: does not encode texts", "Correct `config`."):
                backbone(inputs)


def without_gradient(network: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """Names of the parameters that are to be trained and that the output of `run` does not depend
    on, such as those of a module whose weight is read without calling it."""
    names = {name: each for name, each in network.named_parameters() if each.requires_grad}
    with probing(network), torch.enable_grad():
        found = torch.autograd.grad(run().sum(), list(names.values()), allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is None]


def _without_memory(
    network: nn.Module, size_px: tuple[int, int], run: Callable[[object, Tensor], Found]
) -> Found:
    shadow = _shadow(network)
    for module in shadow.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(_refuse_empty)
    return run(shadow, torch.zeros(1, 3, *size_px, device="meta"))


def _refuse_empty(module: nn.Module, inputs: object, output: object) -> None:
    # Without memory, torch 2.6 accepts a kernel that is larger than the picture.
    if isinstance(output, Tensor) and not output.numel():
        raise ValueError("a convolution gives nothing")


def _shadow(network: nn.Module) -> Any:
    """A copy whose tensors hold no numbers."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor.to("meta") for tensor in tensors})


def width_of(pooled: Any, what: str) -> int:
    """The width of a pooled feature `[1, D]`.

    Raises:
        RecipeError: it is something else, such as a map, a list of maps or all tokens.
    """
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        given = list(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise RecipeError(
            f"{what}: gives {given} for one image, not one feature. Remove what changes its output"
            " from `config`."
        )
    return int(pooled.shape[1])


def refuse_keys(config: Mapping[str, object], reasons: Mapping[str, str], what: str) -> None:
    """Refuse keys that the library takes and a tower cannot have.

    Args:
        reasons: each key with what to do, as a sentence.
    """
    for key in config:
        if key in reasons:
            raise RecipeError(f"{what}: config.{key}: {reasons[key]}")
