"""Halves of transformers' dual encoders: a tower takes the half of its modality, projection
included, and an export puts it back next to the other half."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.builders.huggingface.load import load_model
from vlkd_cli.builders.huggingface.save import save_encoder
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.recipe.types import ModalityName

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPooling


class Dual(NamedTuple):
    """How the library's class makes the feature of a text, before the projection.

    Args:
        pools: `pooler_output`; otherwise the first token.
        padded: texts were padded to the longest length in training, which the feature depends on.
        attention: the implementation that it needs; None: the library's choice.
    """

    pools: bool = True
    padded: bool = False
    attention: str | None = None


DUALS: dict[str, Dual] = {
    # Its causal mask is lost under the fused attention where no text of a batch is padded.
    "aimv2": Dual(attention="eager"),
    "align": Dual(pools=False),
    "altclip": Dual(),
    "chinese_clip": Dual(pools=False),
    "clip": Dual(),
    "clipseg": Dual(),
    "metaclip_2": Dual(),
    "siglip": Dual(padded=True),
    "siglip2": Dual(padded=True),
    "vision-text-dual-encoder": Dual(),
}
"""Dual encoders by their `model_type`."""
PROJECTED = "the projected feature that the library compares, before it is normalized"
AS_LOADED = "the other half of the model is as it was loaded."
_CHILDREN = {
    "image": ("vision_model", "visual_projection"),
    "text": ("text_model", "text_projection"),
}


class LogitStart(NamedTuple):
    """The factor on cosines, and the bias, that a dual encoder was trained to."""

    scale: float
    bias: float | None = None


class Half(nn.Module):
    """One half of a dual encoder, under the library's own names; `pooler_output` is the projected
    feature that the library compares.

    Args:
        whole: a model of the library; its other half is left out.
        modality: which half.
        config: of the whole.
        masked: whether the text half receives the padding mask.
    """

    def __init__(
        self,
        whole: PreTrainedModel,
        modality: ModalityName,
        config: PretrainedConfig,
        *,
        masked: bool = True,
    ) -> None:
        super().__init__()
        encoder, projection = _CHILDREN[modality]
        self.add_module(encoder, getattr(whole, encoder))
        own: nn.Module | None = getattr(whole, projection, None)
        if own is not None:
            self.add_module(projection, own)
        self._names = encoder, None if own is None else projection
        self.kind, self.masked = str(config.model_type), masked
        self.main_input_name = "pixel_values" if modality == "image" else "input_ids"
        for name, parameter in self.inner.named_parameters():
            if modality == "text" and name.startswith("pooler.") and not DUALS[self.kind].pools:
                # Nothing reads it, so it must not wait for a gradient.
                parameter.requires_grad_(False)

    @property
    def inner(self) -> nn.Module:
        """The library's encoder, without the projection."""
        return self.get_submodule(self._names[0])

    def forward(self, **inputs: Tensor | bool) -> BaseModelOutputWithPooling:
        """The library's output, with the projected feature as `pooler_output`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        projection = self._names[1]
        inputs.pop("return_dict", None)
        if not self.masked:
            inputs.pop("attention_mask", None)
        # Not the library's `get_*_features`: their results differ between its versions.
        if "pixel_attention_mask" in inputs and "pixel_attention_mask" not in keys_of(self.inner):
            inputs["attention_mask"] = inputs.pop("pixel_attention_mask")
        output = self.inner(**inputs)
        states = output.last_hidden_state
        first = self.main_input_name == "input_ids" and not DUALS[self.kind].pools
        feature: Tensor = states[:, 0] if first else output.pooler_output.flatten(1)
        if projection is not None:
            feature = self.get_submodule(projection)(feature)
        return BaseModelOutputWithPooling(states, feature)


def load_whole(
    source: str | None,
    config: PretrainedConfig,
    *,
    trust: bool = False,
    cache_dir: str | None = None,
) -> PreTrainedModel:
    """A whole dual encoder.

    Args:
        source: where its weights come from; None: random ones.
    """
    return load_model(
        source,
        config,
        pretrained=source is not None,
        pooling_layer=True,
        attention=DUALS[config.model_type].attention,
        trust=trust,
        cache_dir=cache_dir,
    )


def logit_start(whole: PreTrainedModel) -> LogitStart:
    """The factor on cosines and the bias of a dual encoder."""
    bias: Tensor | None = getattr(whole, "logit_bias", None)
    if (temperature := getattr(whole, "temperature", None)) is not None:
        return LogitStart(1 / float(temperature.detach()))
    scale = math.exp(float(whole.logit_scale.detach()))
    if (most := getattr(whole.config, "max_logit_scale", None)) is not None:
        # AIMv2 bounds the factor where it is used, not the parameter.
        scale = min(max(scale, 1.0), float(most))
    return LogitStart(scale, None if bias is None else float(bias.detach()))


@torch.no_grad()
def put_back(
    whole: PreTrainedModel, halves: Sequence[nn.Module], start: LogitStart | None, folder: Path
) -> None:
    """Write a dual encoder with these halves, in the library's format.

    Args:
        whole: as its weights are; what no half brings stays.
        halves: one of them, or both.
        start: factor and bias of the objective that the halves were trained by; None: as they are.

    Raises:
        WeightsError: a half is of another model, or the library bounds the factor below its value.
    """
    state = dict(whole.state_dict())
    for half in halves:
        for name, tensor in half.state_dict().items():
            if name not in state or state[name].shape != tensor.shape:
                raise WeightsError(
                    f"'{name}' {list(tensor.shape)} is not part of a {type(whole).__name__}. Export"
                    " the towers one by one."
                )
            state[name] = tensor
    if start is not None and "temperature" in state:
        state["temperature"] = torch.tensor(1 / start.scale)
    elif start is not None:
        state["logit_scale"] = torch.full_like(state["logit_scale"], math.log(start.scale))
        if start.scale > (most := getattr(whole.config, "max_logit_scale", math.inf)):
            raise WeightsError(
                f"the factor {start.scale:.1f} is above the {most:g} that {type(whole).__name__}"
                " applies at most. Export the towers one by one."
            )
        if "logit_bias" in state and start.bias is not None:
            state["logit_bias"] = torch.full_like(state["logit_bias"], start.bias)
    save_encoder(whole, whole.config, folder, tensors=state)


class Origin(NamedTuple):
    """The dual encoder that a tower is a half of.

    Args:
        source: where its weights come from; None: they are random.
        config: of the whole.
        start: its factor on cosines, and bias.
    """

    source: str | None
    config: PretrainedConfig
    start: LogitStart
    trust: bool = False
    cache_dir: str | None = None

    def write(self, folder: Path, *halves: nn.Module, start: LogitStart | None = None) -> None:
        """Write the whole with these halves in the library's format.

        Raises:
            RecipeError: one half is missing, and there are no weights to take it from.
        """
        if self.source is None and len(halves) < len(_CHILDREN):
            raise RecipeError(
                f"the other half of this '{self.config.model_type}' has random weights, and the"
                " library has no format for one half. Export a tower of pretrained weights."
            )
        whole = load_whole(self.source, self.config, trust=self.trust, cache_dir=self.cache_dir)
        put_back(whole, halves, start, folder)


def inner_encoder(encoder: nn.Module) -> nn.Module:
    """The library's own encoder inside a half; any other as it is."""
    return encoder.inner if isinstance(encoder, Half) else encoder


def keys_of(encoder: nn.Module) -> set[str]:
    """What an encoder's forward takes."""
    return set(inspect.signature(encoder.forward).parameters)
