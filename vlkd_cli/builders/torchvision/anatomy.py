"""Where the classifier of a torchvision network is, how wide what it reads, which module gives
tokens: all found, none looked up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import RecipeError

UNUSUAL_CLASSES = 1009
"""A number of classes that no layer inside a network has: whatever puts out so many values is the
classifier."""


class Anatomy(NamedTuple):
    """Where a network's classifier is, how wide the feature is that it reads, and the dropouts that
    belong to it."""

    classifier: str
    width: int
    dropouts: tuple[str, ...]


def dissect(model: str, arguments: dict[str, object]) -> Anatomy:
    """Find the classifier of a model without giving memory to its weights.

    Raises:
        RecipeError: the constructor does not take the arguments.
    """
    return open_without_memory(model, arguments)[0]


def open_without_memory(model: str, arguments: dict[str, object]) -> tuple[Anatomy, nn.Module]:
    """The anatomy with the network that it was read from, classifier included; its weights are no
    numbers."""
    with WithoutMemory():
        network = construct(model, {**arguments, "num_classes": UNUSUAL_CLASSES})
    found = [
        (name, module)
        for name, module in network.named_modules()
        if UNUSUAL_CLASSES
        in (
            getattr(module, "out_features", None),
            getattr(module, "out_channels", None),
        )
        and not any(True for _ in module.children())
    ]
    assert len(found) == 1, f"{model}: {len(found)} layers give the classes"
    name, classifier = found[0]
    dropouts: list[str] = []
    for other, module in network.named_modules():
        if module is classifier:
            break
        if isinstance(module, nn.Dropout):
            dropouts.append(other)
        elif any(True for _ in module.parameters(recurse=False)):
            dropouts.clear()
    width = getattr(classifier, "in_features", None) or classifier.in_channels
    return Anatomy(name, int(width), tuple(dropouts)), network


def strip_classifier(network: nn.Module, anatomy: Anatomy) -> None:
    """Replace the classifier's last layer, and dropout that only served it, by identities."""
    for name in (anatomy.classifier, *anatomy.dropouts):
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())


def drop_side_classifiers(network: nn.Module, model: str) -> None:
    """Remove the training-time side classifiers that published weights of the Inception family
    bring."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False  # type: ignore[assignment]
        for child in {name.split(".")[0] for name in auxiliary_names(model)}:
            setattr(network, child, None)


def auxiliary_names(model: str) -> set[str]:
    """Names that published weights of the model hold for training-time side classifiers."""
    from torchvision import models

    with WithoutMemory():
        slim = construct(model, {})
        if not hasattr(slim, "aux_logits"):
            return set()
        whole = models.get_model_builder(model)(weights=None, init_weights=False, aux_logits=True)
    return set(whole.state_dict()) - set(slim.state_dict())


def find_tokens(
    model: str, arguments: dict[str, Any], size_px: tuple[int, int]
) -> tuple[int | None, str | None]:
    """Width and module name of the last feature map of more than one cell, or of the last tokens,
    from a run on meta tensors.

    Returns:
        None twice where the network gives none.
    """
    anatomy, shadow = open_without_memory(model, arguments)
    strip_classifier(shadow, anatomy)
    shadow.to("meta").eval()
    seen: list[tuple[str, torch.Size]] = []

    def watch(name: str) -> object:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor) and (
                (output.ndim == 4 and output.shape[2] * output.shape[3] > 1) or output.ndim == 3
            ):
                seen.append((name, output.shape))

        return hook

    for name, module in shadow.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        shadow(torch.empty(2, 3, *size_px, device="meta"))
    if not seen:
        return None, None
    name, shape = seen[-1]
    return int(shape[1] if len(shape) == 4 else shape[2]), name


FILLING = frozenset(
    {
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
        nn.init.kaiming_normal_,
        nn.init.constant_,
    }
)


class WithoutMemory(TorchFunctionMode):
    """Inside, modules are built without memory for their weights.

    Unlike `torch.device("meta")` it leaves alone the arithmetic that some constructors do with
    small tensors.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        if func in FILLING:
            # There is nothing to fill, yet torch would work out the shapes at length.
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def construct(model: str, arguments: dict[str, object], *, initialize: bool = True) -> nn.Module:
    """A network with random weights and without side classifiers.

    Raises:
        RecipeError: the constructor does not take the arguments.
    """
    from torchvision import models

    build: Callable[..., nn.Module] = models.get_model_builder(model)
    try:
        try:
            # Only the Inception family takes the first of these; everyone else refuses it before
            # building anything.
            return build(weights=None, aux_logits=False, init_weights=initialize, **arguments)
        except TypeError as error:
            if "aux_logits" not in str(error):
                raise
            return build(weights=None, **arguments)
    # Constructors check their arguments each in its own way.
    except Exception as error:
        raise RecipeError(
            f"torchvision model '{model}': {first_line(error)}. Correct the tower's `config` or"
            " `image_size`."
        ) from error


def fixes_its_size(model: str) -> bool:
    """Whether the constructor needs the size of the images, as for transformers with learned
    positions."""
    from torchvision import models

    module = inspect.getmodule(models.get_model_builder(model))
    classes = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and item.__module__ == getattr(module, "__name__", "")
    ]
    return any(
        "image_size" in inspect.signature(item.__init__).parameters
        for item in classes
        if issubclass(item, nn.Module)
    )
