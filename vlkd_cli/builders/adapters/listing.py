"""What every method costs on an encoder, counted on weights that are never made."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from vlkd_cli import catalog
from vlkd_cli.builders.adapters.attach import attach, encoder_model
from vlkd_cli.builders.huggingface.configs import load_config
from vlkd_cli.builders.huggingface.load import load_model
from vlkd_cli.errors import MissingPackageError, RecipeError
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.component import make

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FORMS: dict[str, tuple[str, ...]] = {
    "bottleneck": ("plain", "houlsby", "pfeiffer", "parallel", "adapter_plus"),
    "language": ("pfeiffer", "houlsby"),
    "compacter": ("compacter", "compacter_plus_plus"),
    "reft": ("loreft", "noreft", "direft"),
}
"""The methods that come in several forms; each is a row of the table."""


class MethodRow(NamedTuple):
    """One method, or one form of it, on one encoder."""

    name: str
    form: str | None
    paper: str
    library: str
    merges: bool
    encoders: tuple[str, ...]
    """The types it was tested on; ("any",) means every encoder but the refused ones."""
    trained: int | None
    """Parameters that learn at the defaults; None where the method does not go with the encoder."""
    share: float | None
    """The same over the encoder's own parameters."""
    refused: str | None
    """Why it does not go with the encoder."""


def method_rows(
    model: str | None = None, *, cache_dir: str | None = None
) -> tuple[str, list[MethodRow]]:
    """A name for the encoder, and a row for every method and form on it.

    Args:
        model: hub id, folder or `package:NAME`; None: the sizes of BERT base.

    Raises:
        MissingPackageError: the libraries are not installed.
        WeightsError, RecipeError: the model's configuration cannot be had or is refused.
    """
    if not adapter_rules.is_installed():
        raise MissingPackageError("list-adapters", "adapters")
    config = _bert_base() if model is None else load_config(model, cache_dir=cache_dir)
    size = sum(parameter.numel() for parameter in _skeleton(config).parameters())
    rows = [
        _row(name, form, config, size)
        for name in catalog.names("adapter")
        for form in FORMS.get(name, (None,))
    ]
    return model or "BERT base", rows


def _row(name: str, form: str | None, config: PretrainedConfig, size: int) -> MethodRow:
    method = make("adapter", name, {} if form is None else {"form": form})
    refused = adapter_rules.refusal(name, config.model_type, form=form)
    trained = None
    if refused is None:
        try:
            trained = _count(name, form, config)
        except RecipeError as error:
            refused = str(error)
    share = None if trained is None else trained / size
    return MethodRow(
        name,
        form,
        method.paper,
        method.library,
        method.merges,
        _encoders(name, form),
        trained,
        share,
        refused,
    )


def _count(name: str, form: str | None, config: PretrainedConfig) -> int:
    # LoReFT learns as many numbers as NoReFT, but the library computes its large orthogonal
    # matrices even here.
    form = "noreft" if form == "loreft" else form
    method = make("adapter", name, {} if form is None else {"form": form})
    with torch.device("meta"):
        model = _skeleton(config)
        attach(model, method, lambda text: [0])
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The encoder without numbers."""
    with torch.device("meta"):
        return encoder_model(load_model(None, config, pretrained=False))


def _encoders(name: str, form: str | None) -> tuple[str, ...]:
    fitting = tuple(
        kind
        for kind in adapter_rules.ENCODERS
        if adapter_rules.refusal(name, kind, form=form) is None
    )
    return (
        ("any",)
        if adapter_rules.library_of(name) == "peft" and len(fitting) == len(adapter_rules.ENCODERS)
        else fitting
    )


def _bert_base() -> PretrainedConfig:
    from transformers import BertConfig

    return BertConfig()
