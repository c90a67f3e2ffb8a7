"""A text tower with its pooler and head as one SentenceTransformer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Export
from vlkd_cli.builders.huggingface.text import HuggingFaceText
from vlkd_cli.builders.sbert.builder import SentenceBackbone
from vlkd_cli.builders.sbert.word_vectors import WordVectors, static_tokenizer
from vlkd_cli.heads.linear import LinearHead
from vlkd_cli.heads.mlp import MLPHead
from vlkd_cli.towers.merging import merged_tower
from vlkd_cli.towers.outputs import HEAD
from vlkd_cli.towers.tower import Tower
from vlkd_cli.towers.whole.parts import Mismatch, insist_on_equal, name_of, sample_texts

LIBRARY = "a SentenceTransformer"
POOLINGS = {"MeanPooler": "mean", "CLSPooler": "cls", "MaxPooler": "max", "LastPooler": "lasttoken"}
"""What sentence-transformers calls our poolers."""
HALVES = "it is half of a dual encoder, whose projection sentence-transformers has no module for"


class Layer(NamedTuple):
    """A Dense module: a linear layer and the activation after it."""

    weight: Tensor
    bias: Tensor | None
    activation: nn.Module


def write_sentence_transformer(tower: Tower, folder: Path, destination: Path) -> Export:
    """Write a text tower as a folder for `SentenceTransformer(...)`: the encoder, a Pooling module
    (word vectors have their own), and a Dense module for each linear layer of the head, with batch
    norms folded in.

    Args:
        destination: where the folder will be when it is done.

    Raises:
        WeightsError: encoder, pooler or head have no module there.
        UserError: sentence-transformers gives other vectors.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    tower = merged_tower(tower)
    encoder: Any = tower.encoder
    layers = list(_layers(tower))
    modules = _modules(tower, folder)
    for weight, bias, activation in layers:
        modules.append(
            Dense(
                weight.shape[1],
                weight.shape[0],
                bias=bias is not None,
                activation_function=activation,
                init_weight=weight,
                init_bias=bias,
            )
        )
    model = SentenceTransformer(modules=modules, device="cpu")
    limit = getattr(encoder.input, "max_length", None)
    is_static = isinstance(encoder, WordVectors) or getattr(encoder, "is_static", False)
    if limit is not None and not is_static:
        model.max_seq_length = limit
    model.save_pretrained(str(folder), create_model_card=False)

    def vectors() -> list[tuple[Tensor, Tensor]]:
        texts = sample_texts()
        found = SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
        return [(tower.encode(tower.input(texts)), found)]

    insist_on_equal(name_of(tower), folder, vectors)
    return Export(
        "SentenceTransformer",
        python=f"model = sentence_transformers.SentenceTransformer({str(destination)!r})",
        recipe={"builder": "sbert", "model": str(destination)},
        feature="model.encode(texts)",
    )


def _modules(tower: Tower, folder: Path) -> list[Any]:
    """The library's modules up to the feature that the head reads."""
    what, encoder = name_of(tower), tower.encoder
    if isinstance(encoder, SentenceBackbone):
        if tower.pooler is not None:
            raise Mismatch(
                what, f"it has a pooler that replaces the model's own, which {LIBRARY} cannot store"
            )
        if encoder.encoder.truncate_dim is not None:
            raise Mismatch(what, "its vectors are truncated before the head")
        return list(encoder.encoder)
    if isinstance(encoder, WordVectors):
        return [_static(tower, encoder)]
    if not isinstance(encoder, HuggingFaceText):
        builder = "?" if tower.section is None else tower.section.builder
        raise Mismatch(what, f"it is of builder `{builder}`, which {LIBRARY} cannot store")
    pooling = "MeanPooler" if tower.pooler is None else type(tower.pooler).__name__
    if encoder.origin is not None:
        raise Mismatch(what, HALVES)
    if encoder.own_pooler and tower.pooler is None:
        raise Mismatch(what, f"it reads `own_pooler`, which {LIBRARY} cannot store")
    if encoder.by_length:
        raise Mismatch(what, "padding changes what its encoder gives, and the library pads")
    if pooling not in POOLINGS:
        raise Mismatch(what, f"{LIBRARY} has no module for its pooler")
    from sentence_transformers.sentence_transformer.modules import Pooling

    return [*_transformer(encoder, folder), Pooling(encoder.token_width, POOLINGS[pooling])]


def _static(tower: Tower, encoder: WordVectors) -> Any:
    """The library's module of word vectors, which takes the mean itself."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    if tower.pooler is not None:
        raise Mismatch(
            name_of(tower), f"it has a pooler, and {LIBRARY} takes the mean of word vectors"
        )
    tokenizer = static_tokenizer(encoder.input)
    if tokenizer is None:
        raise Mismatch(
            name_of(tower),
            "its words are looked up as written, else lower-cased, and the vocabulary has words in"
            f" upper case; {LIBRARY} looks up one form only",
        )
    rows = list(encoder.input.rows.values())
    return StaticEmbedding(tokenizer, embedding_weights=encoder.encoder.weight.detach()[rows])


def _transformer(encoder: HuggingFaceText, folder: Path) -> list[Any]:
    """The library's module around a transformers encoder, its adapter merged."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    # The library reads a folder; what it writes later replaces it.
    source = folder / ".encoder"
    source.mkdir()
    try:
        how = encoder.export(source, source, {})
        if how.adapter == "beside":
            raise Mismatch("its adapter", "it cannot be merged into the weights")
        return [Transformer(str(source))]
    finally:
        shutil.rmtree(source)


def _layers(tower: Tower) -> Iterator[Layer]:
    """The head as linear layers with activations."""
    parts = tower.parts()
    if HEAD not in parts:
        return
    head = parts[HEAD].module
    if [source.output for source in parts[HEAD].reads] != ["backbone"]:
        raise Mismatch(
            name_of(tower), f"its head reads more than the feature, and {LIBRARY} does not"
        )
    if type(head) is LinearHead:
        yield Layer(head.linear.weight.detach(), _detached(head.linear.bias), nn.Identity())
        return
    if type(head) is not MLPHead:
        raise Mismatch(name_of(tower), f"{LIBRARY} has no module for its head")
    current: Layer | None = None
    for module in head.layers:
        if isinstance(module, nn.Linear):
            if current is not None:
                yield current
            current = Layer(module.weight.detach(), _detached(module.bias), nn.Identity())
        elif isinstance(module, nn.BatchNorm1d) and current is not None:
            current = _normed(current, module)
        elif isinstance(module, (nn.GELU, nn.ReLU, nn.SiLU)) and current is not None:
            current = current._replace(activation=module)
        elif not isinstance(module, nn.Dropout):
            raise Mismatch(
                name_of(tower),
                f"its head has a {type(module).__name__}, which {LIBRARY} cannot store",
            )
    assert current is not None
    yield current


def _normed(layer: Layer, norm: nn.BatchNorm1d) -> Layer:
    """A linear layer with the batch norm of eval mode after it, as one layer."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    shift = -norm.running_mean * factor
    if norm.affine:
        factor, shift = (
            factor * norm.weight.detach(),
            shift * norm.weight.detach() + norm.bias.detach(),
        )
    bias = shift if layer.bias is None else layer.bias * factor + shift
    return layer._replace(weight=layer.weight * factor[:, None], bias=bias)


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
