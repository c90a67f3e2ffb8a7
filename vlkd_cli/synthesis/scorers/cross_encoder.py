"""A cross-encoder as a scorer: a model that reads query and passage together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from vlkd_cli.errors import WeightsError
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.recipe.types import PositiveInt
from vlkd_cli.synthesis.scorers.scorer import Pairs, Scorer
from vlkd_cli.synthesis.sources import Sources


class CrossEncoder(Scorer):
    """The logit of a transformer with one output that reads query and passage as a pair, as
    sentence-transformers' CrossEncoder does, without a sigmoid. Long pairs are cut at the end of
    the longer text.

    Args:
        model: hub id, folder, or `package:NAME` for a model inside an installed package.
        max_length: longest pair in tokens.
        batch_size: pairs that are scored at a time.

    Source: Nogueira and Cho, Passage Re-ranking with BERT, arXiv:1901.04085. The margins are those
        of Hofstätter et al., arXiv:2010.02666, and of GPL (Wang et al., arXiv:2112.07577), which
        cuts query and passage each.
    """

    def __init__(
        self, *, model: str, max_length: PositiveInt = 512, batch_size: PositiveInt = 32
    ) -> None:
        self.model, self.max_length, self.batch_size = model, max_length, batch_size

    def open(self, sources: Sources) -> None:
        self._sources = sources
        self._tokenizer = load_tokenizer(self.model, builder="cross_encoder")
        self._network = _load(self.model).to(sources.subject.device).eval()

    def digest(self) -> str:
        digest = hashlib.sha256(f"cross_encoder {self.max_length}".encode())
        for name, tensor in self._network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def scores(self, pairs: Sequence[Pairs]) -> list[NDArray[np.float64]]:
        queries = [self._sources.queries[query] for query, own in pairs for _ in own]
        passages = [self._sources.passages[place] for _, own in pairs for place in own.tolist()]
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
            queries,
            passages,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(subject.device)
        with torch.no_grad(), autocast(subject.precision, subject.device):
            logits = self._network(**tokens).logits
        scores: NDArray[np.float64] = logits[:, 0].double().cpu().numpy()
        return scores


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
