"""Encoders and tokenizers of transformers: from a folder, an installed package or the hub, or with
random weights.

Every builder that needs one loads it through here, so that safety checks and error messages are
the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.huggingface.folders import (
    check_model_folder,
    find_model,
    hub_cache,
    missing,
)
from vlkd_cli.builders.weight_files import first_line, read_weights, weight_names
from vlkd_cli.builders.weights import below_prefix
from vlkd_cli.errors import UserError, WeightsError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


Made = TypeVar("Made")


def load_model(
    model: str | None,
    config: PretrainedConfig,
    *,
    pretrained: bool = True,
    pooling_layer: bool = False,
    attention: str | None = None,
    builder: str = "huggingface",
    trust: bool = False,
    cache_dir: str | None = None,
) -> nn.Module:
    """The encoder that a configuration describes, in fp32; of an encoder-decoder, the encoder
    alone.

    Args:
        model: where the weights come from.
        config: what `load_config` or `scratch_config` gave.
        pretrained: false: random weights.
        pooling_layer: include the model's own pooler.
        attention: attention implementation, e.g. "eager"; None: the library's choice.

    Raises:
        WeightsError: weights are missing or do not fit.
    """
    import torch
    from transformers import AutoModel

    extra = {} if attention is None else {"attn_implementation": attention}
    if not pretrained or model is None:

        def make(**options: bool) -> PreTrainedModel:
            return AutoModel.from_config(config, trust_remote_code=trust, **options, **extra)

        what = f"builder '{builder}': config of type '{config.model_type}'"
        with one_line(what, "Correct `config`."):
            network = _with_pooler(make, pooling_layer)
    else:
        source = find_model(model, builder=builder, cache_dir=cache_dir)

        def read(**options: bool) -> tuple[PreTrainedModel, Mapping[str, Iterable[str]]]:
            loaded: tuple[PreTrainedModel, Mapping[str, Iterable[str]]]
            loaded = AutoModel.from_pretrained(
                source,
                config=config,
                cache_dir=hub_cache(cache_dir),
                output_loading_info=True,
                # Refused below by name; the library's own line names no tensor in its version 5.
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                trust_remote_code=trust,
                **options,
                **extra,
            )
            return loaded

        what = f"{builder} model '{model}'"
        try:
            network, report = _with_pooler(read, pooling_layer)
        # The readers of its formats raise exceptions of many kinds on damaged files.
        except Exception as error:
            raise _unreadable(error, model, source, what, builder, cache_dir) from error
        _check_shapes(network, report["mismatched_keys"], what)
        _check_missing(network, report["missing_keys"], source, what, pooler=pooling_layer)
    if getattr(config, "is_encoder_decoder", False):
        network = network.get_encoder()
    if not pooling_layer:
        # Models that cannot be built without their pooler have it anyway; nothing reads it, so it
        # must not wait for a gradient.
        for name, parameter in network.named_parameters():
            if name.startswith("pooler."):
                parameter.requires_grad_(False)
    encoder: nn.Module = network.float()
    return encoder


def _with_pooler(make: Callable[..., Made], pooling_layer: bool) -> Made:
    """What `make` gives, without the pooler where its class can leave it out."""
    try:
        return make() if pooling_layer else make(add_pooling_layer=False)
    except TypeError as error:
        if "add_pooling_layer" not in str(error):
            raise
        return make()


def _unreadable(
    error: Exception, model: str, source: str, what: str, builder: str, cache_dir: str | None
) -> UserError:
    if not Path(source).is_dir():
        if isinstance(error, OSError):
            return missing(what, model, builder, cache_dir, error)
        return WeightsError(f"{what}: {first_line(error)}. Choose another model.")
    if damaged := damaged_weights(Path(source), what):
        return damaged
    reason = "" if isinstance(error, OSError) else f" ({first_line(error)})"
    return WeightsError(
        f"{what}: '{source}' has no readable weights{reason}. Put model.safetensors there."
    )


def damaged_weights(folder: Path, what: str) -> WeightsError | None:
    """What is wrong with the first file of weights below a folder that cannot be read; None where
    all can."""
    try:
        for suffix in (".safetensors", ".bin"):
            for file in sorted(folder.rglob(f"*{suffix}")):
                weight_names(file, what)
    except WeightsError as found:
        return found
    return None


def _check_shapes(network: nn.Module, unfit: Iterable[str | tuple[str, ...]], what: str) -> None:
    """Refuse weights of other shapes than the encoder's.

    Args:
        unfit: names as version 4 of the library reports them, or with both shapes, as version 5.
    """
    names = sorted(each if isinstance(each, str) else each[0] for each in unfit)
    if names:
        shape = list(network.state_dict()[names[0]].shape)
        raise WeightsError(
            f"{what}: its weights do not fit: '{names[0]}' is {shape} here and has another shape in"
            " them. Correct `config` or choose other weights."
        )


def _check_missing(
    network: nn.Module, absent: Iterable[str], source: str, what: str, *, pooler: bool
) -> None:
    """Refuse weights that lack something the encoder reads.

    Args:
        absent: names that the library did not find.
        pooler: whether the model's own pooler is read.
    """

    def is_read(name: str) -> bool:
        return not (
            name.endswith("position_ids")
            or ("pooler" in name and not pooler)
            # Of an encoder-decoder the encoder alone is used, and some weights hold nothing else.
            or (name.startswith("decoder.") and hasattr(network, "encoder"))
        )

    # A set in transformers 5.
    lacking = sorted(name for name in absent if is_read(name))
    if not lacking or take_wrapped(network, source, what, is_read):
        return
    state = network.state_dict()
    shape = list(state[lacking[0]].shape) if lacking[0] in state else ""
    raise WeightsError(
        f"{what}: its weights do not fit: '{lacking[0]}' {shape} is not in them. Correct `config`"
        " or choose other weights."
    )


def take_wrapped(
    network: nn.Module, source: str, what: str, is_read: Callable[[str], bool] = lambda name: True
) -> bool:
    """Load a folder's weights under the names that a training library gave them (`_orig_mod.`,
    `module.`, `model.`), which transformers takes for missing ones; returns whether that worked."""
    names = [name for name, _ in network.named_parameters() if is_read(name)]
    files = [Path(source) / name for name in ("model.safetensors", "pytorch_model.bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return False
    state = below_prefix(read_weights(file, what), names, what, source=str(file))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if any(name not in state or state[name].shape != shapes[name] for name in names):
        return False
    network.load_state_dict(
        {name: tensor for name, tensor in state.items() if name in shapes}, strict=False
    )
    return True


def load_tokenizer(
    model: str, *, builder: str = "huggingface", trust: bool = False, cache_dir: str | None = None
) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, as a transformers object.

    Raises:
        WeightsError: it is neither on disk nor to be had.
    """
    from transformers import AutoTokenizer

    # The processes of the loader are forked, and the library warns and goes single-threaded when
    # that happens after its first use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    source, what = (
        find_model(model, builder=builder, cache_dir=cache_dir),
        f"{builder} model '{model}'",
    )
    check_model_folder(Path(source), what)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, cache_dir=hub_cache(cache_dir), trust_remote_code=trust
        )
        # Folders without a tokenizer's files give one that fails at its first text, or one without
        # any words, or with the special tokens alone.
        tokenizer(["a"])
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("no vocabulary")
    # The classes raise exceptions of many kinds where their files are missing or damaged.
    except Exception as error:
        if not Path(source).is_dir():
            raise missing(what, model, builder, cache_dir, error) from error
        files = _tokenizer_files(Path(source))
        raise WeightsError(
            f"{what}: '{source}' has no readable tokenizer ({files or 'no tokenizer.json'}:"
            f" {first_line(error)}). Put tokenizer.json there, or set `tokenizer`."
        ) from error
    return tokenizer


def _tokenizer_files(folder: Path) -> str:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
    return ", ".join(name for name in names if (folder / name).is_file())
