"""Find the passages that answer a question, in a collection of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from vlkd_cli import console
from vlkd_cli.data.files.passages import (
    BEIR,
    MARCO,
    Collection,
    Corpus,
    Judged,
    open_collection,
    read_judgments,
    read_queries,
)
from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.text_files import file_hashes
from vlkd_cli.evaluation.metrics.ranking import chance_metrics, ranking_metrics
from vlkd_cli.evaluation.passage_search import fingerprint_of, search
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.evaluation.trec import write_run
from vlkd_cli.features.encode import Point, embed_texts
from vlkd_cli.features.subject import Subject

MANY = 100_000
"""Number of passages above which a warning is printed if nothing is cached on disk."""


class PassageRetrieval(Suite):
    """MS MARCO passages (dev) and any folder in BEIR's format: MRR@10, nDCG@10, MAP@100, recall and
    accuracy at k.

    The search is exact. Passages are embedded in chunks, dealt to the ranks, cached on disk, and
    scored block by block, so that millions of them need no more memory than a chunk; an
    interrupted evaluation resumes where it was. Ties go to the larger id, read as text, so that an
    encoder that makes all passages equal gains nothing.

    In BEIR's format the passage with the query's own id is left out of its list, as BEIR, MTEB and
    the papers do: ArguAna and Quora take their queries from the passages. A passage that is judged
    relevant to the query stays, whatever its id.

    Every query with a relevant judgment counts; one without a query text counts 0 and is reported.

    Args:
        data: folder of the collection, or one that holds it; by default `--data`.
        dataset: which of several collections in that folder.
        split: of the judgments: by default `dev.small` (MS MARCO, 6,980 queries) or `test`, else
            `dev` (BEIR).
        similarity: of queries and passages.
        k: cut-offs of recall and accuracy.
        gain: of nDCG: `linear` is the grade, as in trec_eval; `binary` is 1, as in
            sentence-transformers.
        limit: use every relevant passage and as many others, in the file's order, as make this
            number. Scores rise steeply as a collection shrinks; the number is part of the result's
            name.
        title: put a passage's title before its text (BEIR).
        query_prompt: put before every query.
        passage_prompt: put before every passage.
        chunk_size: passages that are embedded, cached and scored at a time.
        features: features after the head, or before it.

    Source: MS MARCO (Bajaj et al. 2016) and its official ms_marco_eval.py; BEIR (Thakur et al.
        2021); trec_eval.
    """

    modalities = frozenset({"text"})

    def __init__(
        self,
        *,
        data: str | None = None,
        dataset: str | None = None,
        split: str | None = None,
        similarity: Literal["cosine", "dot"] = "cosine",
        k: list[int] | None = None,
        gain: Literal["linear", "binary"] = "linear",
        limit: int | None = None,
        title: bool = True,
        query_prompt: str = "",
        passage_prompt: str = "",
        chunk_size: int = 16384,
        features: Literal["head", "backbone"] = "head",
    ) -> None:
        self.data, self.dataset, self.split = data, dataset, split
        self.similarity, self.gain = similarity, gain
        self.k = sorted(k or (1, 10, 100, 1000))
        if self.k[0] < 1 or chunk_size < 1 or (limit is not None and limit < 1):
            raise RecipeError(
                "suite 'passage_retrieval': k, chunk_size and limit must be at least 1."
            )
        self.limit, self.title = limit, title
        self.query_prompt, self.passage_prompt = query_prompt, passage_prompt
        self.chunk_size = chunk_size
        self.features: Point = features

    def open(self, subject: Subject) -> tuple[Collection, dict[str, str], Judged]:
        """The collection, its queries, and their judgments."""
        collection = open_collection(self._folder(subject), self.split)
        queries = read_queries(collection)
        return collection, queries, read_judgments(collection, queries)

    def measures(self, opened: tuple[Collection, dict[str, str], Judged]) -> Measures:
        cut = [f"{kind}@{k}" for kind in ("recall", "accuracy") for k in self.k]
        # How many passages a limit leaves, which is part of the name, is known after reading all.
        names = [opened[0].name] if self.limit is None else []
        return Measures(names, ["mrr@10", "ndcg@10", "map@100", *cut])

    def run(self, subject: Subject) -> list[Result]:
        collection, queries, judged = self.open(subject)
        relevant = {
            passage.encode()
            for grades in judged.values()
            for passage, grade in grades.items()
            if grade > 0
        }
        needed = np.array(sorted(relevant), dtype=np.bytes_)
        corpus = Corpus(collection, title=self.title, keep=needed, limit=self.limit)
        asked = [query for query in queries if query in judged]
        details = {
            "judged_queries": len(judged),
            "queries_without_text": len(judged) - len(asked),
            "relevant_passages": len(needed),
            "relevant_passages_missing": corpus.num_missing(needed),
        }
        self._warn(subject, corpus, details)
        hashes = file_hashes(collection.root, collection.files)
        embedded = embed_texts(
            subject, [self.query_prompt + queries[query] for query in asked], point=self.features
        )
        depth = max(100, self.k[-1])
        scores, keys = search(
            subject,
            embedded,
            corpus,
            depth + 1,  # a query's own passage is taken out afterwards
            similarity=self.similarity,
            prompt=self.passage_prompt,
            chunk_size=self.chunk_size,
            projected=self.features == "head",
            fingerprint=self._fingerprint(collection, hashes),
        )
        ranked = [[corpus.id_of(key) for key in row] for row in keys.tolist()]
        answers = {
            query: _without(own, passages, values, depth)
            for query, own, passages, values in zip(
                asked, self._own(collection, asked, judged), ranked, scores.tolist(), strict=True
            )
        }
        name = (
            collection.name
            if len(corpus) == corpus.num_passages_on_disk
            else f"{collection.name}[{len(corpus)}]"
        )
        if subject.output is not None and is_main():
            file = f"passage_retrieval-{name}-{collection.split}.run"
            write_run(Path(subject.output) / file, answers)
        metrics = ranking_metrics(
            {query: [passage for passage, _ in found] for query, found in answers.items()},
            judged,
            self.k,
            gain=self.gain,
        )
        chance = chance_metrics(judged, len(corpus), self.k, gain=self.gain)
        return [
            self.result(
                subject,
                DataIdentity(name, collection.split, hashes),
                protocol=f"exact_{self.similarity}"
                + ("" if collection.is_marco else "_own_passage_left_out"),
                metrics=_without_precision(metrics),
                primary_metric="mrr@10" if collection.is_marco else "ndcg@10",
                chance=_without_precision(chance),
                num_items=len(judged),
                num_skipped=len(queries) - len(asked),
                settings={
                    "k": self.k,
                    "passages": len(corpus),
                    "passages_in_file": corpus.num_passages_on_disk,
                    "ties": "score, then id as text, descending",
                },
                details=details | {f"precision@{k}": metrics[f"precision@{k}"] for k in self.k},
            )
        ]

    def _fingerprint(self, collection: Collection, hashes: Mapping[str, str]) -> str:
        """What the embeddings on disk are named by: all that chooses and composes the passages, so
        that a judged one does not depend on being judged."""
        own = fingerprint_of(hashes[collection.corpus], title=self.title, limit=self.limit)
        chosen = [hashes[collection.judgments], hashes[collection.queries]]
        return "-".join([own, *(chosen if self.limit is not None else [])])

    def _own(
        self, collection: Collection, asked: Sequence[str], judged: Judged
    ) -> list[str | None]:
        """For each query the id that is left out of its list: its own, in BEIR's format, unless
        that passage is judged relevant."""
        if collection.is_marco:
            return [None] * len(asked)
        return [None if judged[query].get(query, 0) > 0 else query for query in asked]

    def _folder(self, subject: Subject) -> Path:
        root = self.data or subject.data_root
        if root is None:
            raise DataError(
                "suite 'passage_retrieval': its data is not set. Give `--data ROOT` (with"
                " collection.tsv or corpus.jsonl) or `data:`."
            )
        root = Path(root)
        if not root.exists() and subject.data_root is not None:
            root = Path(subject.data_root) / root
        holders = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
        found = {
            folder.name: folder
            for folder in holders
            if any((folder / name).is_file() for name in (MARCO[0], BEIR[0]))
        }
        if root.name in found and self.dataset is None:
            return root
        if self.dataset is not None and self.dataset in found:
            return found[self.dataset]
        there = ", ".join(found) or "none"
        if self.dataset is None and len(found) == 1:
            return next(iter(found.values()))
        if self.dataset is None and found:
            raise DataError(
                f"suite 'passage_retrieval': {root} holds several collections; choose one with"
                f" `dataset:`. Found: {there}."
            )
        missing = self.dataset or f"{MARCO[0]} (MS MARCO) or {BEIR[0]} (BEIR)"
        raise DataError(
            f"suite 'passage_retrieval': {root} holds no {missing}. Collections there: {there}."
            " Nothing is downloaded."
        )

    def _warn(self, subject: Subject, corpus: Corpus, details: Mapping[str, int]) -> None:
        if details["queries_without_text"]:
            console.warn(
                f"passage_retrieval: {details['queries_without_text']} judged queries have no text;"
                " each counts 0."
            )
        if details["relevant_passages_missing"]:
            console.warn(
                f"passage_retrieval: {details['relevant_passages_missing']} relevant passages are"
                " not in the collection."
            )
        if subject.cache is None and len(corpus) > MANY:
            console.warn(
                f"passage_retrieval: {len(corpus):,} passages and no cache folder: if this is"
                " interrupted, it starts over."
            )


def _without(
    own: str | None, passages: Sequence[str], scores: Sequence[float], depth: int
) -> list[tuple[str, float]]:
    """The first `depth` passages with their scores, but for `own`."""
    pairs = zip(passages, scores, strict=True)
    return [(passage, score) for passage, score in pairs if passage != own][:depth]


def _without_precision(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("precision")}
