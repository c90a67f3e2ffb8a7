"""Sentence encoders of sentence-transformers, static word vectors included, with their own pooling
and normalisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone, BuildContext, Builder, Export, ModelInfo, Tokens
from vlkd_cli.builders.huggingface.load import (
    find_model,
    hub_cache,
    offline_folder,
    read_json,
    refuse_foreign_code,
)
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.builders.places import locate, unfetchable
from vlkd_cli.builders.sbert.word_vectors import (
    StaticTokenizer,
    WhitespaceWords,
    WordVectors,
    is_word_file,
    read_word_vectors,
)
from vlkd_cli.builders.tokenizers import PretrainedTokenizer
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.poolers import masked_mean
from vlkd_cli.preprocessing import TextInput

KNOWN = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/all-MiniLM-L12-v2",
    "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    "sentence-transformers/average_word_embeddings_glove.6B.300d",
    "sentence-transformers/static-retrieval-mrl-en-v1",
)
"""A few well-known sentence encoders for the listing; any other hub id works as well."""


class SBERT(Builder):
    """A SentenceTransformer with its own pooling and normalisation, or word vectors from a text
    file (GloVe, word2vec), averaged.

    No prompt is put before the texts.

    Args:
        model: hub id, folder, `package:NAME` for a model inside an installed package, or a file of
            word vectors (.txt, .vec, also .gz): a word and its numbers per line.
        pretrained: only true: for random weights use builder 'huggingface'.
        max_length: longest text in tokens; by default the model's own.
        trust: run code that comes with the model.
        cache_dir: where downloads are kept; by default VLKD_CACHE or the hub's own cache.
    """

    modalities = ("text",)

    def __init__(
        self,
        *,
        model: str,
        pretrained: bool = True,
        max_length: int | None = None,
        trust: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.max_length = max_length
        self.trust = trust
        self.cache_dir = cache_dir

    def build(
        self, modality: Literal["image", "text"], context: BuildContext = BuildContext()
    ) -> Backbone:
        if not self.pretrained:
            raise RecipeError(
                "builder 'sbert' loads trained encoders. For random weights use builder"
                " 'huggingface' with `config`."
            )
        if is_word_file(self.model):
            words, vectors = read_word_vectors(locate(self.model, f"word vectors '{self.model}'"))
            return WordVectors(words, vectors, max_length=self.max_length)
        encoder = self._load()
        return SentenceBackbone(
            encoder, max_length=self.max_length, settings=json.dumps([self.model])
        )

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        """A few well-known models; any sentence encoder of the hub works."""
        if modality == "image":
            return []
        return [
            ModelInfo(name, "sbert", "text", pretrained=("own",))
            for name in KNOWN
            if fnmatch(name.lower(), pattern.lower())
        ]

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer

        what = f"sbert model '{self.model}'"
        source = find_model(self.model, builder="sbert", cache_dir=self.cache_dir)
        if Path(source).is_dir():
            _check_folder(Path(source), what, trust=self.trust)
        else:
            source = self._fetch(source, what)
        try:
            return SentenceTransformer(source, device="cpu", trust_remote_code=self.trust)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise WeightsError(
                f"{what}: '{source}' cannot be loaded: {str(error).strip().splitlines()[0]}"
            ) from error

    def _fetch(self, model: str, what: str) -> str:
        from huggingface_hub import snapshot_download

        names = [model] if "/" in model else [f"sentence-transformers/{model}", model]
        problem: Exception | None = None
        for name in names:
            try:
                folder = Path(
                    snapshot_download(
                        name,
                        cache_dir=hub_cache(self.cache_dir),
                        ignore_patterns=["onnx/*", "openvino/*", "*.h5", "*.ot"],
                    )
                )
            # No network, no such model, no right to it: the remedy is the same.
            except Exception as error:
                problem = error
                continue
            _check_folder(folder, what, trust=self.trust)
            return str(folder)
        folder = offline_folder(names[0], "sbert", self.cache_dir)
        files = (
            f"the files of hub id '{names[0]}' (modules.json, config.json, model.safetensors, ...)"
        )
        raise unfetchable(what, files=files, folder=folder) from problem


class SentenceBackbone(Backbone):
    """A SentenceTransformer's chain of modules."""

    modality = "text"

    def __init__(self, encoder: Any, *, max_length: int | None = None, settings: str = "") -> None:
        super().__init__()
        self.encoder = encoder
        self.is_static = isinstance(getattr(self._first, "embedding", None), nn.EmbeddingBag)
        self.tokenizer = _tokenizer(self._first, encoder, max_length)
        self.settings = settings + "".join(repr(module) for module in list(encoder)[1:])
        with torch.no_grad():
            features = self._embed(self.tokenizer(["a"]))
            tokens = features.get("token_embeddings")
            self.width = int(self._finish(features).shape[-1])
        self.token_width = None if tokens is None else int(tokens.shape[-1])

    @property
    def _first(self) -> Any:
        return next(iter(self.encoder))

    def forward(self, inputs: TextInput) -> Tensor:
        return self._finish(self._embed(inputs))

    def tokens(self, inputs: TextInput) -> Tokens:
        features = self._embed(inputs)
        return Tokens(features["token_embeddings"], features["attention_mask"].bool())

    def tokenize(self, texts: Sequence[str]) -> TextInput:
        return self.tokenizer(texts)

    def layers(self) -> list[list[str]]:
        return find_layers(self.encoder)

    def export(self, folder: Path, place: Path, keys: Mapping[str, Any]) -> Export:
        longest = getattr(self.encoder, "max_seq_length", None)
        limit = keys.get("max_length")
        try:
            if limit and not self.is_static:
                self.encoder.max_seq_length = limit
            self.encoder.save_pretrained(str(folder), create_model_card=False)
        finally:
            if limit and not self.is_static:
                self.encoder.max_seq_length = longest
        return Export(
            "SentenceTransformer",
            python=f"model = sentence_transformers.SentenceTransformer({str(place)!r})",
            recipe={
                "builder": "sbert",
                "model": str(place),
                **{key: keys[key] for key in ("max_length", "trust") if keys.get(key)},
            },
            feature="model.encode(texts)",
        )

    def _embed(self, inputs: TextInput) -> dict[str, Tensor]:
        mask = inputs["attention_mask"]
        if not self.is_static:
            lengths = {"sentence_lengths": mask.sum(1)} if hasattr(self._first, "emb_layer") else {}
            return self._first(
                {"input_ids": inputs["input_ids"], "attention_mask": mask, **lengths}
            )
        values = F.embedding(inputs["input_ids"], self._first.embedding.weight)
        return {
            "token_embeddings": values,
            "attention_mask": mask,
            "sentence_embedding": masked_mean(values, mask.bool()),
        }

    def _finish(self, features: dict[str, Tensor]) -> Tensor:
        for module in list(self.encoder)[1:]:
            features = module(features)
        return features["sentence_embedding"]


def _tokenizer(
    first: Any, encoder: Any, max_length: int | None
) -> Callable[[Sequence[str]], TextInput]:
    own: Any = getattr(first, "tokenizer", None)
    if isinstance(getattr(first, "embedding", None), nn.EmbeddingBag):
        return StaticTokenizer(own.to_str(), max_length=max_length)
    if hasattr(first, "emb_layer"):
        return WhitespaceWords(own, max_length=max_length)
    if not hasattr(own, "pad_token"):
        raise RecipeError(
            f"builder 'sbert': models that begin with '{type(first).__name__}' take no plain texts."
            " Choose another model."
        )
    longest = max_length or getattr(first, "max_seq_length", None) or encoder.max_seq_length or 512
    return PretrainedTokenizer(own, max_length=int(longest))


def _check_folder(folder: Path, what: str, *, trust: bool) -> None:
    """Refuse modules and configurations that would run code from elsewhere."""
    for file in [folder / "config.json", *folder.glob("*/config.json")]:
        if file.is_file():
            content = read_json(file, what)
            if isinstance(content, dict):
                refuse_foreign_code(content, what, trust=trust)
    modules = folder / "modules.json"
    for module in read_json(modules, what) if modules.is_file() else []:
        kind = str(module.get("type", ""))
        if not kind.startswith("sentence_transformers.") and not trust:
            raise RecipeError(
                f"{what}: modules.json names '{kind}', code of the model's author. Add `trust:"
                " true` if you trust it."
            )
