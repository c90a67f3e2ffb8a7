"""The weights of any network that the words of a recipe name: q, k, v, o, up, down, conv."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from vlkd_cli.builders.adapters.changes import Part
from vlkd_cli.builders.adapters.fused import FUSED, rows_of, segments
from vlkd_cli.builders.layers import first_convolution
from vlkd_cli.errors import RecipeError

WORDS = ("q", "k", "v", "o", "up", "down", "conv")
ATTENTION = ("q", "k", "v", "o")
ENDS: dict[str, tuple[str, ...]] = {
    "q": ("query", "projection_query", "q", "q_lin", "q_proj", "query_proj", "to_query"),
    "k": ("key", "projection_key", "k", "k_lin", "k_proj", "key_proj", "to_key"),
    "v": ("value", "projection_value", "v", "v_lin", "v_proj", "value_proj"),
    "o": (
        "attention.output.dense",
        "attention.dense",
        "attn.o",
        "attn.proj",
        "attn_out_proj",
        "attention.proj",
        "attn.Wo",
        "o_proj",
        "out_lin",
        "out_proj",
        "self_attention.dense",
        "self_attn.dense",
        "SelfAttention.o",
    ),
    "up": (
        "c_fc",
        "dense1",
        "dense_h_to_4h",
        "fc1",
        "fc1_g",
        "fc1_x",
        "fc_in",
        "ffn",
        "gate_proj",
        "gate_up_proj",
        "intermediate.dense",
        "lin1",
        "linear_up",
        "ln1",
        "mlp.0",
        "mlp.Wi",
        "pointwise_conv1",
        "pwconv1",
        "up_proj",
        "w12",
        "weights_in",
        "wi",
        "wi_0",
        "wi_1",
    ),
    "down": (
        "dense2",
        "dense_4h_to_h",
        "down_proj",
        "fc2",
        "fc_out",
        "ffn_output",
        "lin2",
        "linear_down",
        "ln2",
        "mlp.3",
        "mlp.Wo",
        "mlp.c_proj",
        "mlp_out_proj",
        "output.dense",
        "pointwise_conv2",
        "pwconv2",
        "w3",
        "weights_out",
        "wo",
    ),
}
"""The ends of a module's name by its role, over the families of open_clip, timm, torchvision and
transformers."""
# A block of a row: a module around it has a name that is a number or ends in one, or its own name
# is a number. The stem of open_clip's ResNet is conv1, conv2, conv3.
_IN_A_ROW = re.compile(r"(^|\.)([A-Za-z_]*\d+\.|\d+$)")
_SQUEEZE = re.compile(r"SE(?![a-z])|Squeeze")
"""Classes of modules that weight channels: their fc1 and fc2 are not an MLP."""
_WRAPPED = ".linear"
"""LeViT's linear layers are inside of modules with a batch norm, such as qkv.linear."""
_NOT_IN_BLOCKS = ("embed", "stem", "downsample", "patch")
_DEEP_STEM = "conv1."
"""timm's ResNets begin with a row of convolutions."""


def find_parts(
    network: nn.Module, targets: Sequence[str] | None, prefixes: Sequence[str] | None
) -> list[Part]:
    """The weights that targets name, each once.

    Args:
        targets: words, or ends of a module's name; None: the attention's q, k, v, o; without
            attention the MLP's up and down; without either conv.
        prefixes: what begins the names of the layers that are meant; None: all.

    Raises:
        RecipeError: a target matches nothing.
    """
    if targets is not None and not targets:
        raise RecipeError("adapter.targets: is empty. Name at least one, e.g. q.")
    if targets is None:
        for usual in (ATTENTION, ("up", "down"), ("conv",)):
            found = parts_named(network, usual, prefixes)
            if found:
                return found
        raise RecipeError(
            "adapter: this network has no attention, MLP or convolution in its layers that could"
            " be adapted."
        )
    for target in targets:
        if not parts_named(network, (target,), prefixes):
            ends = sorted({name.rpartition(".")[2] for name, _ in _layers(network, prefixes)})
            where = "this network" if prefixes is None else "these layers"
            raise RecipeError(
                f"adapter.targets: '{target}' names nothing in {where}. Words: {', '.join(WORDS)};"
                f" or the end of a layer's name, of {', '.join(ends[:12])}."
            )
    return parts_named(network, targets, prefixes)


def parts_named(
    network: nn.Module, targets: Iterable[str], prefixes: Sequence[str] | None
) -> list[Part]:
    """The same weights as `find_parts`; none where a target matches nothing."""
    return list(_parts(network, targets, prefixes))


def _parts(
    network: nn.Module, targets: Iterable[str], prefixes: Sequence[str] | None
) -> Iterator[Part]:
    wanted = set(targets)
    stem = first_convolution(network)
    for name, module in _layers(network, prefixes):
        if isinstance(module, nn.MultiheadAttention):
            yield from _of_attention(name, module, wanted)
            continue
        parent, _, last = name.removesuffix(_WRAPPED).rpartition(".")
        holder = network.get_submodule(parent)
        if last in FUSED and isinstance(module, (nn.Linear, nn.Conv2d)):
            found = segments(holder, last, len(module.weight))
            words = set(FUSED[last]) if found is None else {word for word, _ in found if word}
            by_name = _ends(name, wanted - set(WORDS))
            if wanted & words or by_name:
                chosen = wanted & words or words
                yield Part(name, rows=rows_of(found, chosen, name))
            continue
        role = _role(name, module, holder, is_stem=module is stem)
        if role in wanted or _ends(name, wanted - set(WORDS)):
            yield Part(name, inputs=role == "down")


def _layers(network: nn.Module, prefixes: Sequence[str] | None) -> Iterator[tuple[str, nn.Module]]:
    """Modules with a weight inside the blocks of rows, attention as a whole."""
    inside: list[str] = []
    for name, module in network.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        if prefixes is not None and not any(
            name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes
        ):
            continue
        attention = isinstance(module, nn.MultiheadAttention)
        if attention:
            inside.append(name)
        if (attention or isinstance(module, (nn.Linear, nn.Conv2d))) and _IN_A_ROW.search(name):
            yield name, module


def _of_attention(name: str, module: nn.MultiheadAttention, wanted: set[str]) -> Iterator[Part]:
    if not module._qkv_same_embed_dim:
        for word in "qkv":
            if word in wanted:
                yield Part(name, f"{word}_proj_weight")
    elif wanted & set("qkv"):
        joined = [(word, int(module.embed_dim)) for word in "qkv"]
        yield Part(name, "in_proj_weight", rows_of(joined, wanted & set("qkv"), name))
    if "o" in wanted or "out_proj" in wanted:
        yield Part(f"{name}.out_proj")


def _role(name: str, module: nn.Module, holder: nn.Module, *, is_stem: bool) -> str | None:
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.kernel_size != (1, 1)):
        return "conv" if module.groups == 1 and not is_stem and _is_inside(name) else None
    name, squeezes = name.removesuffix(_WRAPPED), _SQUEEZE.search(type(holder).__name__)
    if name.endswith((".proj", ".merge")) and any(hasattr(holder, part) for part in (*FUSED, "q")):
        return "o"
    for word, ends in ENDS.items() if not squeezes else ():
        if any(name == end or name.endswith(f".{end}") for end in ends):
            if word == "down" and "attention." in name:
                continue
            return word
    if isinstance(module, nn.Linear) and re.search(r"\.block\.[35]$", name):
        return "up" if name.endswith("3") else "down"  # torchvision's ConvNeXt
    return "conv" if isinstance(module, nn.Conv2d) and not is_stem and _is_inside(name) else None


def _is_inside(name: str) -> bool:
    """Whether a convolution is part of a block, by its name."""
    return not name.startswith(_DEEP_STEM) and not any(word in name for word in _NOT_IN_BLOCKS)


def _ends(name: str, ends: Iterable[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
