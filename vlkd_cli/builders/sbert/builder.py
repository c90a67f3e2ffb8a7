"""Sentence encoders of sentence-transformers, static word vectors included, with their own pooling
and normalization."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.builders.backbone import (
    Backbone,
    BuildContext,
    Builder,
    Encoded,
    Export,
    ModelInfo,
    Tokens,
)
from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.huggingface.configs import num_positions
from vlkd_cli.builders.huggingface.folders import (
    check_model_folder,
    find_model,
    hub_cache,
    offline_folder,
    read_json,
    refuse_foreign_code,
)
from vlkd_cli.builders.huggingface.load import damaged_weights, take_wrapped
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.builders.padding import Outputs, by_length, leaks, probing
from vlkd_cli.builders.places import locate, unfetchable
from vlkd_cli.builders.sbert.word_vectors import (
    StaticTokenizer,
    WhitespaceWords,
    WordVectors,
    is_word_file,
    read_word_vectors,
)
from vlkd_cli.builders.sizes import check_max_length
from vlkd_cli.builders.tokenizers import PretrainedTokenizer
from vlkd_cli.builders.weight_files import first_line, weight_names
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.poolers import masked_mean
from vlkd_cli.preprocessing import TextInput
from vlkd_cli.recipe.types import ModalityName, TextLength

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

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
    """A SentenceTransformer with its own pooling and normalization, or word vectors from a text
    file (GloVe, word2vec), averaged.

    No prompt is put before the texts.

    Args:
        model: hub id, folder, `package:NAME` for a model inside an installed package, or a file of
            word vectors (.txt, .vec, also .gz): a word and its numbers per line.
        pretrained: only true: for random weights use builder 'huggingface'.
        max_length: longest text in tokens; by default the model's own.
        trust: run code that comes with the model.
        cache_dir: folder for downloads; by default VLKD_CACHE or the hub's own cache.
    """

    modalities = ("text",)
    adaptable = True

    def __init__(
        self,
        *,
        model: str,
        pretrained: bool = True,
        max_length: TextLength | None = None,
        trust: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.max_length = max_length
        self.trust = trust
        self.cache_dir = cache_dir

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
        if not self.pretrained:
            raise RecipeError(
                "builder 'sbert' loads trained encoders. For random weights use builder"
                " 'huggingface' with `config`."
            )
        if is_word_file(self.model):
            check_max_length("sbert", self.max_length, least=1, most=None)
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
        if modality not in (None, "text"):
            return []
        return [
            ModelInfo(name, "sbert", "text", pretrained=("own",))
            for name in KNOWN
            if fnmatch(name.lower(), pattern.lower())
        ]

    def _load(self) -> object:
        from sentence_transformers import SentenceTransformer

        what = f"sbert model '{self.model}'"
        source = find_model(self.model, builder="sbert", cache_dir=self.cache_dir)
        if Path(source).is_dir():
            _check_folder(Path(source), what, trust=self.trust)
        else:
            source = self._fetch(source, what)
        try:
            encoder = SentenceTransformer(source, device="cpu", trust_remote_code=self.trust)
        # Each kind of module reads its files in its own way.
        except Exception as error:
            raise damaged_weights(Path(source), what) or WeightsError(
                f"{what}: '{source}' cannot be loaded ({first_line(error)}). Replace the folder."
            ) from error
        network = getattr(next(iter(encoder)), "auto_model", None)
        if network is not None:
            _check_names(network, Path(source), what)
        return encoder

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

    def __init__(
        self, encoder: SentenceTransformer, *, max_length: int | None = None, settings: str = ""
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.is_static = isinstance(getattr(self._first, "embedding", None), nn.EmbeddingBag)
        self.input = _tokenizer(self._first, encoder, max_length)
        self.settings = settings + "".join(repr(module) for module in list(encoder)[1:])
        if encoder.truncate_dim is not None:
            self.settings += f" truncated to {encoder.truncate_dim}"
        self.by_length = False
        inputs = self.input(["a"])
        what = "builder 'sbert': the model's modules do not give one embedding of a plain text"
        with probing(encoder), one_line(what, "Choose another model, or add a pooling module."):
            found = self._outputs(inputs)
        with probing(encoder):
            self.by_length = leaks(inputs, self._outputs, getattr(self.input, "pad", 0))
        self.width = int(found["feature"].shape[-1])
        self.token_width = int(found["tokens"].shape[-1]) if "tokens" in found else None

    @property
    def _first(self) -> Any:
        return next(iter(self.encoder))

    def run(self, inputs: TextInput, *, tokens: bool) -> Encoded:
        found = self._run(inputs)
        values = found.get("tokens")
        return Encoded(
            found["feature"],
            None if values is None else Tokens(values, inputs["attention_mask"].bool()),
        )

    def layers(self) -> list[list[str]]:
        return find_layers(self.encoder)

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
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
            python=f"model = sentence_transformers.SentenceTransformer({str(destination)!r})",
            recipe={
                "builder": "sbert",
                "model": str(destination),
                **{key: keys[key] for key in ("max_length", "trust") if keys.get(key)},
            },
            feature="model.encode(texts)",
        )

    def _run(self, inputs: TextInput) -> Outputs:
        return by_length(inputs, self._outputs) if self.by_length else self._outputs(inputs)

    def _outputs(self, inputs: TextInput) -> Outputs:
        """The feature, and the tokens of the first module where it gives any."""
        features = self._embed(inputs)
        tokens = features.get("token_embeddings")
        # The modules behind the first write their results into the same dict.
        found = {"feature": self._finish(features)}
        return found if tokens is None else {"tokens": tokens, **found}

    def _embed(self, inputs: TextInput) -> dict[str, Tensor]:
        mask = inputs["attention_mask"]
        if not self.is_static:
            lengths = {"sentence_lengths": mask.sum(1)} if hasattr(self._first, "emb_layer") else {}
            features: dict[str, Tensor] = self._first(
                {"input_ids": inputs["input_ids"], "attention_mask": mask, **lengths}
            )
            return features
        values = F.embedding(inputs["input_ids"], self._first.embedding.weight)
        return {
            "token_embeddings": values,
            "attention_mask": mask,
            "sentence_embedding": masked_mean(values, mask.bool()),
        }

    def _finish(self, features: dict[str, Tensor]) -> Tensor:
        for module in list(self.encoder)[1:]:
            features = module(features)
        # As SentenceTransformer.encode does, after the last module and without normalizing again.
        return features["sentence_embedding"][..., : self.encoder.truncate_dim]


def _tokenizer(
    first: nn.Module, encoder: SentenceTransformer, max_length: int | None
) -> Callable[[Sequence[str]], TextInput]:
    own: Any = getattr(first, "tokenizer", None)
    is_static = isinstance(getattr(first, "embedding", None), nn.EmbeddingBag)
    if is_static or hasattr(first, "emb_layer"):
        check_max_length("sbert", max_length, least=1, most=None)
        if is_static:
            return StaticTokenizer(own.to_str(), max_length=max_length)
        return WhitespaceWords(own, max_length=max_length)
    if not hasattr(own, "pad_token"):
        raise RecipeError(
            f"builder 'sbert': models that begin with '{type(first).__name__}' take no plain texts."
            " Choose another model."
        )
    # transformers 5 makes a tokenizer of special tokens where a folder has no files of one.
    if len(own) <= len(set(own.all_special_ids)):
        raise RecipeError(
            f"builder 'sbert': '{own.name_or_path}' has no readable tokenizer. Put tokenizer.json"
            " there."
        )
    config = getattr(getattr(first, "auto_model", None), "config", None)
    positions = None if config is None else num_positions(config)
    longest = getattr(first, "max_seq_length", None) or encoder.max_seq_length or positions or 512
    longest = min(int(longest), positions or int(longest)) if max_length is None else max_length
    marks = own.num_special_tokens_to_add(pair=False)
    check_max_length("sbert", longest, least=marks + 1, most=positions)
    return PretrainedTokenizer(own, max_length=longest)


def _check_names(network: nn.Module, source: Path, what: str) -> None:
    """Give an encoder its weights where they are under names that transformers takes for missing
    ones and fills in at random.

    Raises:
        WeightsError: they hold none of the encoder's names.
    """
    folders = [folder for folder in (source, source / "0_Transformer") if folder.is_dir()]
    file = next(
        (
            folder / name
            for folder in folders
            for name in ("model.safetensors", "pytorch_model.bin")
            if (folder / name).is_file()
        ),
        None,
    )
    if file is None:
        return
    names = {name for name, _ in network.named_parameters()}
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    held = {name.removeprefix(prefix) for name in weight_names(file, what)}
    if names & held or take_wrapped(network, str(file.parent), what):
        return
    raise WeightsError(
        f"{what}: '{file}' holds none of the encoder's weights, e.g. '{min(names)}'. Choose the"
        " weights that belong to the folder."
    )


def _check_folder(folder: Path, what: str, *, trust: bool) -> None:
    """Refuse modules and configurations that would run code from elsewhere, and files that are
    only pointers."""
    for part in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        check_model_folder(part, what)
        file = part / "config.json"
        content = read_json(file, what) if file.is_file() else {}
        if not isinstance(content, dict):
            raise WeightsError(f"{what}: '{file}' is not a configuration. Replace the file.")
        refuse_foreign_code(content, what, trust=trust)
        _refuse_activation(content.get("activation_function"), file, what, trust=trust)
    modules = folder / "modules.json"
    listed = read_json(modules, what) if modules.is_file() else []
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise WeightsError(f"{what}: '{modules}' is not a list of modules. Replace the file.")
    for module in listed:
        kind = str(module.get("type", ""))
        if not kind.startswith("sentence_transformers.") and not trust:
            raise RecipeError(
                f"{what}: modules.json names '{kind}', code of the model's author. Add `trust:"
                " true` if you trust it."
            )


def _refuse_activation(name: object, file: Path, what: str, *, trust: bool) -> None:
    """The library calls what a Dense module names as its activation, and silently replaces one
    that it does not trust."""
    # Encoders have plain words under the same key.
    if "." not in str(name) or trust or str(name).startswith("torch.nn."):
        return
    raise RecipeError(
        f"{what}: '{file}' names '{name}' as activation, code of the model's author. Add `trust:"
        " true` if you trust it."
    )
