"""An adapter on disk: its own weights with the method's name and keys, or folded into the encoder
it was trained with.

The libraries' own files lose state: Compacter's shared matrices, VeRA's random ones and DiReFT's
form are not in them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from torch import Tensor, nn

from vlkd_cli.builders.adapters.attach import is_own, own_tensors
from vlkd_cli.builders.huggingface.save import save_encoder, save_tokenizer
from vlkd_cli.errors import WeightsError
from vlkd_cli.recipe.former_names import replace_in_adapter
from vlkd_cli.recipe.yaml_file import plain_values

if TYPE_CHECKING:
    from vlkd_cli.builders.adapters.builder import AdaptedText

WEIGHTS = "adapter.safetensors"
SECTION = "adapter.yaml"


def save_adapter(backbone: AdaptedText, folder: Path | str) -> None:
    """Write an adapted backbone's method: `adapter.yaml` is the recipe's `adapter:` section,
    `adapter.safetensors` its weights."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SECTION).write_text(
        yaml.safe_dump(backbone.section, sort_keys=False), encoding="utf-8"
    )
    # A tensor that the library holds under several names is written once for each, so no two share
    # memory in the file.
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in own_tensors(backbone.encoder).items()
    }
    save_file(
        tensors,
        folder / WEIGHTS,
        metadata={"format": "vlkd adapter", "method": str(backbone.section["name"])},
    )


def load_adapter(backbone: AdaptedText, folder: Path | str) -> None:
    """Take in what `save_adapter` wrote.

    Raises:
        WeightsError: the files are not there, are of another method, or do not fit; the message
            names the first difference.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).expanduser()
    try:
        saved = plain_values((folder / SECTION).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(
            f"adapter_weights: '{folder}' has no readable {SECTION} and {WEIGHTS}. Name a folder"
            " that an adapter was saved in."
        ) from error
    if isinstance(saved, dict):
        replace_in_adapter(saved)
    _same_method(saved, backbone.section, folder)
    own = own_tensors(backbone.encoder)
    for name in [*own, *state]:
        here, there = own.get(name), state.get(name)
        if here is None or there is None or here.shape != there.shape:
            raise WeightsError(
                f"adapter_weights: '{folder}' does not fit this encoder: '{name}' is"
                f" {_shape(there)} in it and {_shape(here)} here. Use the encoder it was trained"
                " with."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def export_merged(backbone: AdaptedText, folder: Path | str) -> None:
    """Write the encoder with the method folded into its weights, as a plain transformers folder
    with the tokenizer.

    The backbone stays as it is.

    Raises:
        WeightsError: the method cannot be folded in.
    """
    if backbone.method is None or not backbone.method.merges:
        raise WeightsError(
            f"adapter '{backbone.section['name']}' cannot be folded into the encoder's weights: it"
            " is part of the computation. Save the adapter itself; of the methods, lora, dora,"
            " vera and ia3 can be folded in."
        )
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(backbone.encoder)
    for name, layer in [
        (name, module)
        for name, module in merged.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(merged.get_submodule(parent), child, layer.get_base_layer())
    save_encoder(merged, backbone.config, Path(folder))
    save_tokenizer(backbone.input, Path(folder))


def encoder_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """An adapted encoder's weights without the adapter's."""
    return {name: tensor for name, tensor in encoder.state_dict().items() if not is_own(name)}


def _same_method(saved: object, here: dict[str, object], folder: Path) -> None:
    if saved == here:
        return
    wanted = saved if isinstance(saved, dict) else {}
    for key in [*here, *wanted]:
        if here.get(key) != wanted.get(key):
            raise WeightsError(
                f"adapter_weights: '{folder}' was saved with adapter.{key}: {wanted.get(key)}, the"
                f" recipe has {here.get(key)}. Copy the section from its {SECTION}."
            )


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(list(tensor.shape))
