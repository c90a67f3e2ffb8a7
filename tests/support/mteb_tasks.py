"""Toy tasks of mteb from local data; importing this needs the extra mteb."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image

from tests.support.fakes import color_of

ITEMS = 40


def _metadata(name: str, category: str, modalities: list[str], type_: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Each query has one document.",
        dataset={"path": "none", "revision": "7"},
        type=type_,
        category=category,
        modalities=modalities,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )


class _Toy(AbsTaskRetrieval):
    def _corpus(self) -> Dataset:
        raise NotImplementedError

    def _queries(self) -> Dataset:
        return Dataset.from_dict(
            {
                "id": [f"q{n}" for n in range(ITEMS)],
                "text": [f"again picture {n}" for n in range(ITEMS)],
            }
        )

    def load_data(self, **keys: Any) -> None:
        part = {
            "corpus": self._corpus(),
            "queries": self._queries(),
            "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in range(ITEMS)},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": part}}
        self.data_loaded = True


class ToyText(_Toy):
    """Texts find texts."""

    metadata = _metadata("ToyText", "t2t", ["text"], "Retrieval")

    def _corpus(self) -> Dataset:
        ids = [f"d{n}" for n in range(ITEMS)]
        return Dataset.from_dict({"id": ids, "text": [f"picture {n}" for n in range(ITEMS)]})


class ToyImage(_Toy):
    """Texts find images."""

    metadata = _metadata("ToyImage", "t2i", ["text", "image"], "Any2AnyRetrieval")

    def _corpus(self) -> Dataset:
        images = [Image.new("RGB", (8, 8), color_of(n)) for n in range(ITEMS)]
        return Dataset.from_dict({"id": [f"d{n}" for n in range(ITEMS)], "image": images})
