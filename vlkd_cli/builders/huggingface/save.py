"""Encoders and tokenizers as folders that transformers loads without vlkd."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlkd_cli.builders.tokenizers import ClipTokenizer
from vlkd_cli.builders.weights import write_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

WEIGHTS = "model.safetensors"


def save_encoder(
    encoder: nn.Module,
    config: PretrainedConfig,
    folder: Path,
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` for AutoModel; of an encoder-decoder only the
    encoder, under the names of the whole.

    Args:
        encoder: what builder huggingface loaded.
        config: the configuration that it was loaded with.
        tensors: the weights by the encoder's names, where they are not its own state.
    """
    distinct = _distinct(encoder.state_dict() if tensors is None else tensors)
    config = copy.deepcopy(config)
    config.architectures = [type(encoder).__name__]
    if getattr(config, "is_encoder_decoder", False):
        config.architectures, names = _names_in_whole(encoder, config)
        distinct = {names[name]: tensor for name, tensor in distinct.items()}
    # transformers 5 loads weights in the type that the configuration names, which is that of the
    # file they came from.
    config.dtype = "float32"
    config.save_pretrained(folder)
    write_weights(distinct, folder / WEIGHTS)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tower's tokenizer for AutoTokenizer, with the tower's own limit on the length.

    CLIP's byte pairs become a fast tokenizer with the same ids. It does not repair HTML entities
    and broken Unicode first. Where padding has no id of its own, it pads with the end token, as
    OpenAI's does: the first one counts.
    """
    if isinstance(tokenizer, ClipTokenizer):
        _clip_tokenizer(tokenizer).save_pretrained(folder)
        return
    own = copy.deepcopy(tokenizer.tokenizer)
    own.model_max_length = tokenizer.max_length
    if own.pad_token is None and len(own):
        # Others pad by the tokenizer's own token; the mask hides any.
        own.pad_token = own.convert_ids_to_tokens(tokenizer.pad)
    own.save_pretrained(folder)


def _distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under the first of its names."""
    seen: set[tuple[int, torch.Size]] = set()
    distinct = {}
    for name, tensor in tensors.items():
        storage = (tensor.data_ptr(), tensor.shape)
        if storage not in seen:
            seen.add(storage)
            distinct[name] = tensor
    return distinct


def _names_in_whole(
    encoder: nn.Module, config: PretrainedConfig
) -> tuple[list[str], dict[str, str]]:
    """The class of the encoder-decoder, and what it calls the encoder's tensors."""
    from transformers import AutoModel

    with torch.device("meta"):
        whole = AutoModel.from_config(config)
    if type(encoder) is not type(whole.get_encoder()):
        # A library's wrapper around the encoder, which names it as the whole does.
        return [type(encoder).__name__], {name: name for name in encoder.state_dict()}
    first = {
        id(tensor): name for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]
    }
    inside = whole.get_encoder().state_dict(keep_vars=True)
    return [type(whole).__name__], {name: first[id(tensor)] for name, tensor in inside.items()}


def _clip_tokenizer(clip: ClipTokenizer) -> PreTrainedTokenizerFast:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    start, end = "<start_of_text>", "<end_of_text>"
    pad = "<pad>" if clip.shift else end
    vocabulary, merges = clip.vocabulary()
    if pad == end:
        # The id that fills up is that of a word.
        vocabulary = {piece: own for piece, own in vocabulary.items() if piece != "<pad>"}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"),
                behavior="removed",
                invert=True,
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in dict.fromkeys((pad, start, end))
            if token in vocabulary
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, vocabulary[token]) for token in (start, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        model_max_length=clip.context_length,
        # No token types, which CLIP's text encoders do not take.
        model_input_names=["input_ids", "attention_mask"],
    )
