"""A cross-encoder as a scorer: a model that reads query and passage together."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlkd_cli.builders.huggingface.configs import num_positions
from vlkd_cli.builders.huggingface.folders import (
    check_model_folder,
    find_model,
    hub_cache,
    missing,
    read_json,
    refuse_foreign_code,
)
from vlkd_cli.builders.huggingface.load import damaged_weights, load_tokenizer
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.recipe.types import PositiveInt
from vlkd_cli.synthesis.scorers.scorer import Pairs, Scorer
from vlkd_cli.synthesis.sources import Sources

USUAL_LENGTH = 512


class CrossEncoder(Scorer):
    """The logit of a transformer with one output that reads query and passage as a pair, as
    sentence-transformers' CrossEncoder does, without the activation function (a sigmoid, unless the
    model names another). Long pairs are cut at the end of the longer text. The model's default
    prompt, if it has one, is put before the query.

    Args:
        model: hub id, folder, or `package:NAME` for a model inside an installed package.
        max_length: longest pair in tokens; null: 512, or the model's positions if these are fewer.
        batch_size: pairs that are scored at a time.

    Source: Nogueira and Cho, Passage Re-ranking with BERT, arXiv:1901.04085. The margins are those
        of Hofstätter et al., arXiv:2010.02666, and of GPL (Wang et al., arXiv:2112.07577), which
        cuts query and passage each.
    """

    def __init__(
        self, *, model: str, max_length: PositiveInt | None = None, batch_size: PositiveInt = 32
    ) -> None:
        self.model, self.max_length, self.batch_size = model, max_length, batch_size

    def open(self, sources: Sources) -> None:
        self._sources = sources
        self._tokenizer = load_tokenizer(self.model, builder="cross_encoder")
        self._network = _load(self.model).to(sources.subject.device).eval()
        self._takes = frozenset(inspect.signature(self._network.forward).parameters)
        self._longest = self._longest_pair()
        self._prompt = _default_prompt(self.model)

    def _longest_pair(self) -> int:
        """In tokens.

        Raises:
            RecipeError: `max_length` is more than the model reads, or leaves no room for a pair.
            WeightsError: pairs of unlike length cannot share a batch.
        """
        what, positions = f"cross-encoder '{self.model}'", num_positions(self._network.config)
        if self._tokenizer.pad_token is None:
            raise WeightsError(
                f"{what}: has no padding token, so pairs of unlike length cannot share a batch."
                " Choose another model."
            )
        least = self._tokenizer.num_special_tokens_to_add(pair=True) + 2
        longest = self.max_length or min(USUAL_LENGTH, positions or USUAL_LENGTH)
        if longest < least or (positions is not None and longest > positions):
            raise RecipeError(
                f"{what}: pairs of {longest} tokens do not fit it. Set max_length from {least} up"
                f" to {positions or USUAL_LENGTH}."
            )
        return longest

    def digest(self) -> str:
        digest = hashlib.sha256(f"cross_encoder {self._longest} {self._prompt}".encode())
        for name, tensor in self._network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def scores(self, pairs: Sequence[Pairs]) -> list[NDArray[np.float64]]:
        queries = [self._sources.queries[query] for query, own in pairs for _ in own]
        passages = [
            self._sources.passages[position] for _, own in pairs for position in own.tolist()
        ]
        lengths = [-len(query) - len(text) for query, text in zip(queries, passages, strict=True)]
        # Pairs of similar length share a batch, so that little of it is padding.
        order = np.argsort(lengths, kind="stable")
        found = np.empty(len(order))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            found[batch] = self._logits([queries[n] for n in batch], [passages[n] for n in batch])
        ends = np.cumsum([len(own) for _, own in pairs])
        return np.split(found, ends[:-1])

    def _logits(self, queries: list[str], passages: list[str]) -> NDArray[np.float64]:
        subject = self._sources.subject
        tokens = self._tokenizer(
            [self._prompt + query for query in queries],
            passages,
            padding=True,
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        ).to(subject.device)
        # Some tokenizers number the two texts for models that do not read these numbers.
        inputs = {name: value for name, value in tokens.items() if name in self._takes}
        with torch.no_grad(), autocast(subject.precision, subject.device):
            logits = self._network(**inputs).logits
        scores: NDArray[np.float64] = logits[:, 0].double().cpu().numpy()
        return scores


def _default_prompt(model: str) -> str:
    """What sentence-transformers puts before the first text of each pair; usually nothing."""
    from transformers.utils import cached_file

    file = cached_file(
        find_model(model, builder="cross_encoder"),
        "config_sentence_transformers.json",
        cache_dir=hub_cache(None),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    page = {} if file is None else read_json(Path(file), f"cross-encoder '{model}'")
    if not isinstance(page, dict) or page.get("default_prompt_name") is None:
        return ""
    return str((page.get("prompts") or {}).get(page["default_prompt_name"]) or "")


def _load(model: str) -> Any:
    from transformers import AutoModelForSequenceClassification

    what = f"cross-encoder '{model}'"
    source = find_model(model, builder="cross_encoder")
    if (Path(source) / "config.json").is_file():
        check_model_folder(Path(source), what)
        config = read_json(Path(source) / "config.json", what)
        if isinstance(config, dict):
            refuse_foreign_code(config, what, trust=False)
    try:
        network, report = AutoModelForSequenceClassification.from_pretrained(
            source, cache_dir=hub_cache(None), output_loading_info=True, dtype=torch.float32
        )
    # The readers of its formats raise exceptions of many kinds on damaged files.
    except Exception as error:
        if not Path(source).is_dir():
            raise missing(what, model, "cross_encoder", None, error) from error
        raise damaged_weights(Path(source), what) or WeightsError(
            f"{what}: '{source}' cannot be loaded ({first_line(error)}). Replace the folder."
        ) from error
    if network.config.num_labels != 1:
        raise WeightsError(
            f"{what}: gives {network.config.num_labels} numbers for a pair instead of one score."
            " Choose a model for ranking, such as cross-encoder/ms-marco-MiniLM-L6-v2."
        )
    if absent := [name for name in report["missing_keys"] if "position_ids" not in name]:
        raise WeightsError(
            f"{what}: '{absent[0]}' is not in its weights, so it was not trained to score pairs."
            " Choose a cross-encoder."
        )
    return network
