"""Add a parameter-efficient method to any backbone, in place: afterwards only the weights of the
method are trainable."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vlkd_cli.builders.adapters.changes import (
    BiasFactors,
    Change,
    Decomposed,
    Factors,
    LowRank,
    Part,
    Vectors,
    fixed_matrices,
)
from vlkd_cli.builders.adapters.fused import FUSED, segments
from vlkd_cli.builders.adapters.methods.low_rank import IA3, DoRA, LoRA, LowRankOptions, VeRA
from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.builders.adapters.methods.visual_prompts import VPT
from vlkd_cli.builders.adapters.targets import find_parts, parts_named
from vlkd_cli.builders.adapters.vpt import REMEDY, attach_prompts
from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.trial import without_gradient
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.preprocessing import ImageInput, Inputs

_BIASES = {"weight": "bias", "in_proj_weight": "in_proj_bias"}


def adapt(backbone: Backbone, name: str, method: Method, what: str) -> None:
    """Attach a method to a backbone of any builder and freeze the rest.

    Args:
        name: the method's, as in the catalogue.
        what: the tower and method, for messages.

    Raises:
        RecipeError: the method does not fit the network, or would have no effect at a weight.
    """
    network: Any = backbone.encoder
    layers = backbone.layers()
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    if isinstance(method, VPT):
        attach_prompts(backbone, method, what)
    else:
        _attach_changes(network, method, _prefixes(layers, method, what), what)
    # As they are without the method, whose modules would be taken for layers.
    backbone.__dict__["layers"] = _Layers(layers)
    section = {key: value for key, value in vars(method).items() if not key.startswith("_")}
    backbone.settings = json.dumps([backbone.settings, name, section], sort_keys=True, default=str)
    backbone.adapter_name = name
    called = _watch_dropout(network)
    remedy = REMEDY if isinstance(method, VPT) else "Choose other targets, or another model."
    with one_line(f"{what}: is not for this network", remedy):
        dead = without_gradient(backbone, lambda: _outputs(backbone))
    if dead:
        module = dead[0].removeprefix("encoder.").partition(".parametrizations")[0]
        raise RecipeError(
            f"{what}: has no effect at '{module}': no output depends on its weights there, so they"
            " get no gradient. Leave it out of the adapter's targets."
        )
    silent = called()
    if silent:
        raise RecipeError(
            f"{what}: dropout: has no effect at '{silent[0]}', whose weight is used without calling"
            " it. Set dropout: 0, or leave it out of targets."
        )


def merged(backbone: Backbone) -> Backbone:
    """A copy of an adapted backbone with the method folded into its weights; it has exactly the
    plain backbone's keys.

    Raises:
        WeightsError: the method cannot be folded in.
    """
    if hasattr(backbone, "vlkd_prompts"):
        raise WeightsError(
            f"adapter '{backbone.adapter_name}' is part of the computation and cannot be merged"
            " into the weights. Take the tower from its run (`run: ...`)."
        )
    plain = copy.deepcopy(backbone)
    for module in [each for each in plain.modules() if parametrize.is_parametrized(each)]:
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Dropout):
                del module._forward_hooks[key]
        names: list[str] = list(module.parametrizations)  # type: ignore[arg-type]
        values = {name: getattr(module, name).detach().clone() for name in names}
        # Not torch's own removal: it changes the class, which the copy shares with the original.
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    plain.settings, *_ = json.loads(plain.settings)
    plain.adapter_name = ""
    return plain


class _Layers:
    """Replaces a backbone's method of this name."""

    def __init__(self, layers: list[list[str]]) -> None:
        self.found = layers

    def __call__(self) -> list[list[str]]:
        return self.found


def _prefixes(layers: list[list[str]], method: Method, what: str) -> list[str] | None:
    """The names of the layers that are adapted; None: all."""
    last = getattr(method, "last", None)
    if last is None:
        return None
    if last > len(layers):
        raise RecipeError(f"{what}: last: {last}: the backbone has {len(layers)} layers.")
    return [prefix for layer in layers[-last:] for prefix in layer]


def _attach_changes(
    network: nn.Module, method: Method, prefixes: Sequence[str] | None, what: str
) -> None:
    make = _maker(method, what)
    dropout = float(getattr(method, "dropout", 0.0))
    for part in _parts_of(network, method, prefixes):
        module = network.get_submodule(part.module)
        weight: Any = getattr(module, part.tensor)
        # The name of the parameters stays the library's for anyone who reads them.
        change = make(weight, part)
        parametrize.register_parametrization(module, part.tensor, change, unsafe=True)
        if isinstance(change, Factors) and not change.inputs:
            _scale_biases(network, part, change)
        if dropout:
            if part.tensor != "weight":
                raise RecipeError(
                    f"{what}: dropout: has no effect at '{part.module}', whose weight is used"
                    " without calling it. Set dropout: 0."
                )
            if isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward:
                raise RecipeError(
                    f"{what}: dropout: is not for '{part.module}', a convolution that standardizes"
                    " its weight or pads in its own way. Set dropout: 0."
                )
            module.register_forward_hook(_Dropout(change, dropout, part.module))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(part.startswith("vlkd_") for part in name.split(".")))


def _scale_biases(network: nn.Module, part: Part, change: Factors) -> None:
    """Let factors of outputs scale their bias too, under whichever name the library holds it."""
    module = network.get_submodule(part.module)
    name = _BIASES.get(part.tensor, "")
    if getattr(module, name, None) is not None:
        parametrize.register_parametrization(module, name, BiasFactors(change), unsafe=True)
        return
    # timm's BEiT and EVA and DeBERTa hold the biases of a fused weight next to it; one of zeros is
    # a buffer.
    holder, _, layer = part.module.rpartition(".")
    parent = network.get_submodule(holder)
    if layer not in FUSED:
        return
    found = segments(parent, layer, len(change.vlkd_f)) or []
    for word in FUSED[layer]:
        bias = getattr(parent, f"{word}_bias", None)
        if isinstance(bias, nn.Parameter):
            own = torch.cat([torch.full((rows,), made == word) for made, rows in found])
            parametrize.register_parametrization(
                parent, f"{word}_bias", BiasFactors(change, own), unsafe=True
            )


def _parts_of(network: nn.Module, method: Method, prefixes: Sequence[str] | None) -> list[Part]:
    targets: Sequence[str] | None = getattr(method, "targets", None)
    if not isinstance(method, IA3):
        return find_parts(network, targets, prefixes)
    if targets is not None:
        chosen = find_parts(network, targets, prefixes)
        down = find_parts(network, ["down"], prefixes) if method.feed_forward else []
        return [*chosen, *(part for part in down if part not in chosen)]
    found: list[Part] = []
    for word in ("k", "v", *(("down",) if method.feed_forward else ())):
        more = parts_named(network, [word], prefixes)
        found += [part for part in more if part.module not in {each.module for each in found}]
    if any(part.rows is not None for part in found):
        # Keys and values of a fused weight are one part.
        both = find_parts(network, ["k", "v"], prefixes)
        found = both + [part for part in found if part.inputs]
    return found or find_parts(network, ["conv"], prefixes)


def _maker(method: Method, what: str) -> Callable[[Tensor, Part], Change]:
    """What makes the change of a weight."""
    shared: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    def low_rank(kind: type[LowRank], options: LowRankOptions) -> Callable[[Tensor, Part], Change]:
        rank, alpha = options["r"], options["lora_alpha"]
        scale = alpha / (rank**0.5 if options.get("use_rslora") else rank)

        def make(weight: Tensor, part: Part) -> Change:
            smallest = min(len(weight), weight[0].numel())
            if weight.ndim == 4 and weight.shape[1] == 1 and len(weight) > 1:
                raise RecipeError(
                    f"{what}: '{part.module}' is a depthwise convolution, which only ia3 adapts."
                    " Leave it out of targets."
                )
            if rank > smallest:
                raise RecipeError(
                    f"{what}: rank: {rank} is more than the {smallest} of '{part.module}'. Choose"
                    " a smaller rank."
                )
            return kind(weight, part.rows, rank=rank, scale=scale)

        return make

    def vectors(weight: Tensor, part: Part) -> Change:
        assert isinstance(method, VeRA)
        if weight.ndim != 2:
            raise RecipeError(
                f"{what}: '{part.module}' is a convolution, which vera does not adapt. Choose lora."
            )
        options = method.options
        if weight.shape not in shared:
            seed = options["projection_prng_key"]
            inner, outer = fixed_matrices(weight.shape, options["r"], seed)
            shared[weight.shape] = inner.to(weight), outer.to(weight)
        return Vectors(
            weight,
            part.rows,
            matrices=shared[weight.shape],
            initial_scale=options["d_initial"],
        )

    if isinstance(method, DoRA):
        return low_rank(Decomposed, method.tower_options())
    if isinstance(method, LoRA):
        return low_rank(LowRank, method.tower_options())
    if isinstance(method, VeRA):
        return vectors
    assert isinstance(method, IA3)
    return lambda weight, part: Factors(weight, part.rows, inputs=part.inputs)


class _Dropout:
    """A hook that drops parts of the input for what a method adds, in training."""

    def __init__(self, change: Change, probability: float, name: str) -> None:
        self.change, self.probability, self.name = change, probability, name
        self.calls = 0

    def __call__(self, module: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.calls += 1
        if not module.training:
            return output
        base = module.parametrizations.weight.original
        added = self.change(base) - base
        noise = F.dropout(given[0], self.probability) - given[0]
        if isinstance(module, nn.Linear):
            return output + F.linear(noise, added)
        of_noise: Tensor = module._conv_forward(noise, added, None)
        return output + of_noise


def _watch_dropout(network: nn.Module) -> Callable[[], list[str]]:
    """Names of the modules with dropout that are not called until the result is."""
    hooks = [
        hook
        for module in network.modules()
        for hook in module._forward_hooks.values()
        if isinstance(hook, _Dropout)
    ]
    return lambda: [hook.name for hook in hooks if not hook.calls]


def _outputs(backbone: Backbone) -> Tensor:
    """The sum of all outputs for one input."""
    device = next(backbone.parameters()).device
    if isinstance(backbone.input, ImageInput):
        given: Inputs = torch.randn(1, 3, *backbone.input.size_px, device=device)
    else:
        assert callable(backbone.input)
        texts = backbone.input(["a text"])
        given = {key: value.to(device) for key, value in texts.items()}
    encoded = backbone(given)
    tokens = None if encoded.tokens is None else encoded.tokens.values
    return torch.stack([each.sum() for each in (encoded.feature, tokens) if each is not None])
