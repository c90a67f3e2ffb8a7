"""From queries and passages to relations: mine, choose, score, write; block by block."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import vlkd_cli
from vlkd_cli import console
from vlkd_cli.data.files.relations import FILE, PAGE, Relation
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.distributed.collectives import broadcast_object, gather_objects
from vlkd_cli.distributed.runtime import is_main, rank, world_size
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.recipe.synthesis_checks import BM25
from vlkd_cli.synthesis.choosing import Chosen, choose
from vlkd_cli.synthesis.mining import Mined, merged, mine
from vlkd_cli.synthesis.parts import Parts
from vlkd_cli.synthesis.scorers.scorer import Pairs
from vlkd_cli.synthesis.scoring import Weighted, needs_whole_lists, open_scorers, scores_of
from vlkd_cli.synthesis.sources import Sources, open_sources

QUERIES_PER_BLOCK = 1000
"""What an interruption loses, and what a rank scores at a time."""


class Synthesis(NamedTuple):
    """What was written.

    Args:
        relations: the file of triplets.
        page: what they were made of; OUT/synthesis.json.
    """

    relations: Path
    page: dict[str, Any]


def synthesize(spec: SynthesisSpec, subject: Subject, output: Path) -> Synthesis:
    """Write OUT/relations.tsv and OUT/synthesis.json; the same bytes for any number of ranks and
    interruptions, on a CPU.

    Args:
        subject: the recipe's towers, with a cache folder.

    Raises:
        UserError: the texts cannot be read, a model cannot be loaded, OUT holds something else, or
            no query has two passages.
    """
    sources = open_sources(spec, subject)
    scorers = open_scorers(spec, sources)
    parts = Parts(output, _digest(spec, sources, scorers))
    if _on_first(parts.start):
        lists = [_lists(parts, sources, miner, spec.depth) for miner in spec.miners]
        blocks = range(-(-len(sources.queries) // QUERIES_PER_BLOCK))
        _fill(parts, blocks, _Block(spec, sources, scorers, lists))
        _on_first(lambda: _finish(parts, blocks, spec, sources))
    elif is_main():
        console.note(f"{output / FILE} is complete already.")
    page = read_json(output / PAGE)
    return Synthesis(output / FILE, page)


def _on_first(work: Any) -> Any:
    """What `work` gives on the first process, on all of them, as is what it raises."""
    answer, problem = None, None
    if is_main():
        try:
            answer = work()
        except UserError as error:
            problem = error
    answer, problem = broadcast_object((answer, problem))
    if problem is not None:
        raise problem
    return answer


def _digest(spec: SynthesisSpec, sources: Sources, scorers: Sequence[Weighted]) -> str:
    """Of everything that the relations depend on."""
    subject = sources.subject
    towers = [name for name in spec.miners if name != BM25]
    parts = {
        "spec": spec.model_dump(mode="json", exclude={"data"}),
        "title": sources.title,
        "min_grade": sources.min_grade,
        "files": dict(sources.files),
        "miners": [subject.weights_digest(subject.towers[name]) for name in towers],
        "scorers": [each.scorer.digest() for each in scorers],
        "precision": subject.precision,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _lists(parts: Parts, sources: Sources, miner: str, depth: int) -> NDArray[np.int32]:
    """What a miner finds, mined once."""
    if _on_first(lambda: parts.lists(miner) is None):
        if is_main():
            console.say(
                f"Mining with '{miner}': {len(sources.queries):,} queries,"
                f" {len(sources.passages):,} passages."
            )
        lists = mine(sources, miner, depth)
        _on_first(lambda: parts.write_lists(miner, lists))
    lists = parts.lists(miner)  # type: ignore[assignment]
    assert lists is not None
    return lists


class _Block(NamedTuple):
    """What the relations of a block of queries are made of."""

    spec: SynthesisSpec
    sources: Sources
    scorers: Sequence[Weighted]
    lists: Sequence[NDArray[np.int32]]

    def relations(self, queries: range) -> tuple[list[Relation], Counter[str]]:
        """The relations of some queries, in their order, and counts of what is to be reported."""
        counts: Counter[str] = Counter()
        own: list[tuple[Mined, Chosen]] = []
        pairs: list[Pairs] = []
        for query in queries:
            mined = merged([lists[query] for lists in self.lists])
            chosen = choose(mined, query, self.spec, self._judged(query), self.sources.min_grade)
            if problem := self._problem(query, mined, chosen):
                counts[problem] += 1
                continue
            counts["queries_with_fewer"] += len(chosen.negatives) < self.spec.relations - 1
            own.append((mined, chosen))
            pairs.append(Pairs(query, self._scored(mined, chosen)))
        if not pairs:
            return [], counts
        listed = [
            np.isin(each.passages, mined.passages)
            for each, (mined, _) in zip(pairs, own, strict=True)
        ]
        totals = scores_of(self.scorers, pairs, listed)
        relations = [
            relation
            for each, total, (mined, chosen) in zip(pairs, totals, own, strict=True)
            for relation in self._rows(each, total, mined, chosen)
        ]
        counts["queries"] += len(pairs)
        counts["relations"] += len(relations)
        counts["negative_margins"] += sum(relation.margin < 0 for relation in relations)
        return relations, counts

    def _judged(self, query: int) -> Mapping[int, float] | None:
        """Passage -> grade, of passages that have a text; None where no judgments are read."""
        if self.spec.positive != "judged":
            return None
        sources = self.sources
        grades = sources.judged.get(sources.queries.id_of(query), {})
        rows = sources.passages.positions(list(grades)).tolist()
        known = zip(rows, grades.values(), strict=True)
        blank = set(sources.blank.tolist())
        return {row: grade for row, grade in known if row >= 0 and row not in blank}

    def _problem(self, query: int, mined: Mined, chosen: Chosen) -> str:
        """Why a query has no relations; empty where it has some."""
        if not self.sources.queries[query].strip():
            return "queries_without_text"
        if not len(mined.passages):
            return "queries_without_passages"
        if not len(chosen.positives):
            return "queries_without_positive"
        return "" if len(chosen.negatives) else "queries_without_negative"

    def _scored(self, mined: Mined, chosen: Chosen) -> NDArray[np.int64]:
        """The passages of a query that are scored, each once."""
        if needs_whole_lists(self.scorers):
            used = np.concatenate([mined.passages, chosen.positives])
        else:
            used = np.concatenate([chosen.positives, mined.passages[chosen.negatives]])
        return np.array(list(dict.fromkeys(used.tolist())), dtype=np.int64)

    def _rows(
        self, pairs: Pairs, scores: NDArray[np.float64], mined: Mined, chosen: Chosen
    ) -> list[Relation]:
        score_of = dict(zip(pairs.passages.tolist(), scores.tolist(), strict=True))
        passages, query = self.sources.passages, self.sources.queries.id_of(pairs.query)
        return [
            Relation(
                query=query,
                positive=passages.id_of(positive),
                negative=passages.id_of(negative),
                positive_score=score_of[positive],
                negative_score=score_of[negative],
                rank=position + 1,
                miner=self.spec.miners[mined.miners[position]],
            )
            for positive in chosen.positives.tolist()
            for position in chosen.negatives.tolist()
            for negative in [int(mined.passages[position])]
        ]


def _fill(parts: Parts, blocks: range, block: _Block) -> None:
    """Score and store the blocks that are missing; ranks take them in turn."""
    missing = _on_first(lambda: [number for number in blocks if not parts.is_done(number)])
    count = len(block.sources.queries)
    for first in range(0, len(missing), world_size()):
        problem = ""
        if first + rank() < len(missing):
            number = missing[first + rank()]
            start = number * QUERIES_PER_BLOCK
            try:
                found = block.relations(range(start, min(start + QUERIES_PER_BLOCK, count)))
                parts.write_block(number, *found)
            except UserError as error:
                problem = str(error)
            except OSError as error:
                problem = f"OUT {parts.output} cannot be written: {error.strerror}. Free space."
        # Ranks that continue would wait for one that has stopped.
        for message in gather_objects(problem):
            if message:
                raise DataError(message)
        if is_main() and len(blocks) > 1:
            done = len(blocks) - len(missing) + min(first + world_size(), len(missing))
            console.say(f"Scored {min(done * QUERIES_PER_BLOCK, count):,} of {count:,} queries.")


def _finish(parts: Parts, blocks: range, spec: SynthesisSpec, sources: Sources) -> None:
    counts = parts.counts(blocks)
    if not counts["relations"]:
        raise DataError(
            f"{sources.collection.root}: no query has a positive and a negative passage"
            f" ({described(counts)}). Raise synthesis.depth, or add another miner."
        )
    subject = sources.subject
    towers = {name: subject.weights_digest(subject.towers[name]) for name in subject.towers}
    parts.finish(
        blocks,
        {
            "version": vlkd_cli.__version__,
            "synthesis": spec.model_dump(mode="json"),
            "data": {
                "path": str(sources.collection.root.absolute()),
                "title": sources.title,
                "files": dict(sources.files),
                "queries": len(sources.queries),
                "passages": len(sources.passages),
                "passages_without_text": len(sources.blank),
            },
            "towers": towers,
            "counts": dict(sorted(counts.items())),
            "share_of_negative_margins": counts["negative_margins"] / counts["relations"],
        },
    )


_REASONS = {
    "queries_without_text": "without text",
    "queries_without_passages": "without a mined passage",
    "queries_without_positive": "without a positive",
    "queries_without_negative": "without a negative",
    "queries_with_fewer": "with fewer relations than asked for",
}


def described(counts: Mapping[str, int]) -> str:
    """What there is to report of the queries; empty where there is nothing."""
    found = [f"{counts[key]:,} {words}" for key, words in _REASONS.items() if counts.get(key)]
    return ", ".join(found)
