"""Semantic textual similarity: do similarities of sentences order pairs as people do?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.texts import number, read_lines
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.text_files import file_hashes, find_folder, missing_files
from vlkd_cli.evaluation.metrics.correlation import SIMILARITIES, pair_similarity, pearson, spearman
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import Point, embed_texts
from vlkd_cli.features.subject import Subject

SUBSETS = {
    "STS12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "STS13": ("FNWN", "headlines", "OnWN"),
    "STS14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "STS15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "STS16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
SINGLE = {
    "STSB": ("STS/STSBenchmark/sts-test.csv",),
    "STSB-dev": ("STS/STSBenchmark/sts-dev.csv",),
    "STSB-train": ("STS/STSBenchmark/sts-train.csv",),
    "SICKR": ("SICK/SICK_test_annotated.txt",),
    "SICKR-all": ("SICK/SICK_train.txt", "SICK/SICK_trial.txt", "SICK/SICK_test_annotated.txt"),
}
TABLE = (*SUBSETS, "STSB", "SICKR")
"""The seven columns of the usual table, whose mean is its last one."""


class Pairs(NamedTuple):
    """Judged pairs of one subset, and how many lines had no judgment."""

    first: list[str]
    second: list[str]
    gold: NDArray[np.float64]
    skipped: int = 0


class STS(Suite):
    """STS12 to STS16, STS-Benchmark and SICK relatedness without training: cosine of two sentences
    against the human score.

    The yearly sets consist of subsets, and papers aggregate them in three ways that differ by many
    points: `all` is one correlation over the pairs of all subsets, `mean` the mean of the subsets'
    correlations, `wmean` their mean weighted by pairs. All three are reported, for Spearman and
    Pearson. Pairs without a gold score are skipped and counted.

    Args:
        data: folder in SentEval's layout (`downstream/STS/STS12-en-test/...`, or that folder
            `downstream` itself); by default `--data`.
        sets: STS12 to STS16, STSB, STSB-dev, STSB-train, SICKR (the 4,927 test pairs that SentEval
            scores), SICKR-all (the 9,927 pairs that MTEB scores). By default those of the seven of
            the usual table, and STSB-dev, whose files are all there; the files that the others miss
            are named.
        similarity: `max` is the best Spearman (and Pearson) of the four, which
            sentence-transformers before 3.0 returned.
        aggregation: which of the three the primary metric is.
        compat: `simcse` rounds to two decimals (of percent) before the mean over sets is taken, as
            published tables did.
        features: features after the head, or before it.

    Source: SentEval (Conneau and Kiela 2018), senteval/sts.py; `all` as in SimCSE (Gao et al.
        2021).
    """

    modalities = frozenset({"text"})
    libraries = ("scipy",)

    def __init__(
        self,
        *,
        data: str | None = None,
        sets: list[str] | None = None,
        similarity: Literal["cosine", "dot", "euclidean", "manhattan", "max"] = "cosine",
        aggregation: Literal["all", "mean", "wmean"] = "all",
        compat: Literal["none", "simcse"] = "none",
        features: Literal["head", "backbone"] = "head",
    ) -> None:
        self.data, self.sets = data, sets
        self.similarity, self.aggregation, self.compat = similarity, aggregation, compat
        self.features: Point = features
        known = [*SUBSETS, *SINGLE]
        for name in sets or ():
            if name not in known:
                raise RecipeError(
                    f"suite 'sts': unknown set '{name}'.{did_you_mean(name, known)} Known:"
                    f" {', '.join(known)}."
                )

    def open(self, subject: Subject) -> tuple[Path, dict[str, dict[str, Pairs]]]:
        """The folder, and the subsets of each set that is there."""
        root = find_folder(subject, self.data, "sts", holds=("STS", "SICK"), below=_BELOW)
        return root, {name: _read(root, name) for name in self._present(root)}

    def measures(self, opened: tuple[Path, dict[str, dict[str, Pairs]]]) -> Measures:
        names = [
            f"{kind}{ending}"
            for kind in ("spearman", "pearson")
            for ending in ("", "_all", "_mean", "_wmean")
        ]
        sets = list(opened[1])
        table = [name for name in sets if name in TABLE]
        return Measures([*sets, *([_average_name(table)] if len(table) > 1 else [])], names)

    def run(self, subject: Subject) -> list[Result]:
        root, read = self.open(subject)
        texts = [
            text
            for subsets in read.values()
            for pairs in subsets.values()
            for text in (*pairs.first, *pairs.second)
        ]
        embedded = embed_texts(subject, texts, point=self.features).numpy()
        results, start = [], 0
        for name, subsets in read.items():
            vectors = {}
            for subset, pairs in subsets.items():
                middle, end = start + len(pairs.gold), start + 2 * len(pairs.gold)
                vectors[subset] = (embedded[start:middle], embedded[middle:end])
                start = end
            results.append(self._result(subject, root, name, subsets, vectors))
        if len(table := [result for result in results if result.dataset in TABLE]) > 1:
            results.append(self._average(subject, table))
        return results

    def _present(self, root: Path) -> list[str]:
        wanted = self.sets or [*TABLE, "STSB-dev"]
        missing = {name: missing_files(root, _files(name)) for name in wanted}
        incomplete = "; ".join(
            f"{name} lacks {', '.join(files)}" for name, files in missing.items() if files
        )
        present = [name for name in wanted if not missing[name]]
        if incomplete and (self.sets is not None or not present):
            raise DataError(
                f"suite 'sts': below {root}, {incomplete}. Put the files there, or choose the sets"
                " that you have with `sets:`."
            )
        if incomplete:
            console.warn(f"suite 'sts': only {', '.join(present)}; below {root}, {incomplete}.")
        return present

    def _result(
        self,
        subject: Subject,
        root: Path,
        name: str,
        subsets: dict[str, Pairs],
        vectors: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> Result:
        gold = {subset: pairs.gold for subset, pairs in subsets.items()}
        kinds = SIMILARITIES if self.similarity == "max" else (self.similarity,)
        tables = [
            aggregate(
                {subset: pair_similarity(*vectors[subset], kind=kind) for subset in subsets}, gold
            )
            for kind in kinds
        ]
        # A correlation that does not exist cannot be the best one.
        figures = {
            metric: max(
                (figure[metric] for figure, _ in tables), key=lambda value: (value == value, value)
            )
            for metric in tables[0][0]
        }
        if name in SINGLE:
            figures = {"spearman": figures["spearman_all"], "pearson": figures["pearson_all"]}
        split = "all" if name == "SICKR-all" else name.partition("-")[2] or "test"
        return self.result(
            subject,
            DataIdentity(name, split, file_hashes(root, _files(name))),
            protocol=f"unsupervised_{self.similarity}",
            metrics=figures,
            primary_metric="spearman" if name in SINGLE else f"spearman_{self.aggregation}",
            chance=dict.fromkeys(figures, 0.0),
            num_items=sum(len(pairs.gold) for pairs in subsets.values()),
            num_skipped=sum(pairs.skipped for pairs in subsets.values()),
            settings={"aggregation": "one list" if name in SINGLE else self.aggregation},
            details={
                "subsets": {
                    str(kind): table for kind, (_, table) in zip(kinds, tables, strict=True)
                }
            },
        )

    def _average(self, subject: Subject, table: Sequence[Result]) -> Result:
        """The last column of the usual table; names the sets that it averages."""
        values = [result.metrics[result.primary_metric] for result in table]
        pearsons = [
            result.metrics[result.primary_metric.replace("spearman", "pearson")] for result in table
        ]
        if self.compat == "simcse":
            values, pearsons = (
                [round(100 * value, 2) / 100 for value in column] for column in (values, pearsons)
            )
        names = [result.dataset for result in table]
        hashes = {file: digest for result in table for file, digest in result.hashes.items()}
        return self.result(
            subject,
            DataIdentity(_average_name(names), "test", hashes),
            protocol=table[0].protocol,
            metrics={"spearman": float(np.mean(values)), "pearson": float(np.mean(pearsons))},
            primary_metric="spearman",
            chance={"spearman": 0.0, "pearson": 0.0},
            num_items=sum(result.num_items for result in table),
            num_skipped=sum(result.num_skipped for result in table),
            settings={"sets": names},
        )


def _average_name(sets: Sequence[str]) -> str:
    return "average" if len(sets) == len(TABLE) else f"average of {'+'.join(sets)}"


def aggregate(
    similarities: dict[str, NDArray[np.float64]], gold: dict[str, NDArray[np.float64]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The three aggregations of Spearman and Pearson over subsets, and the subsets' own figures.

    Args:
        similarities: of the pairs of each subset.
        gold: their human scores.
    """
    table = {
        name: {
            "spearman": spearman(scores, gold[name]),
            "pearson": pearson(scores, gold[name]),
            "pairs": len(scores),
        }
        for name, scores in similarities.items()
    }
    weights = [float(row["pairs"]) for row in table.values()]
    together = (
        np.concatenate(list(similarities.values())),
        np.concatenate([gold[name] for name in similarities]),
    )
    figures = {}
    for metric, correlate in (("spearman", spearman), ("pearson", pearson)):
        each = [row[metric] for row in table.values()]
        figures[f"{metric}_all"] = correlate(*together)
        figures[f"{metric}_mean"] = float(np.mean(each))
        figures[f"{metric}_wmean"] = float(np.average(each, weights=weights))
    return figures, table


_BELOW = tuple(
    f"{folder}downstream"
    for folder in ("", "senteval/", "SentEval/data/", "data/", "sentences/", "simcse_sts_data/")
)


def _files(name: str) -> list[str]:
    if name in SINGLE:
        return list(SINGLE[name])
    return [
        f"STS/{name}-en-test/STS.{part}.{subset}.txt"
        for subset in SUBSETS[name]
        for part in ("input", "gs")
    ]


def _read(root: Path, name: str) -> dict[str, Pairs]:
    if name in SUBSETS:
        folder = root / "STS" / f"{name}-en-test"
        subsets = {
            subset: _read_year(folder / f"STS.input.{subset}.txt", folder / f"STS.gs.{subset}.txt")
            for subset in SUBSETS[name]
        }
    else:
        read = read_benchmark if name.startswith("STSB") else read_sick
        subsets = {Path(file).stem: read(root / file) for file in SINGLE[name]}
    for subset, pairs in subsets.items():
        if len(pairs.gold) < 2:
            raise DataError(
                f"suite 'sts': {name}, {subset} has {len(pairs.gold)} judged pairs; a correlation"
                " needs at least two."
            )
    return subsets


def _read_year(inputs: Path, scores: Path) -> Pairs:
    lines, gold_lines = read_lines(inputs), read_lines(scores)
    # Blank lines at the end are not pairs; a blank score next to a pair means that it was not
    # judged.
    while lines and not lines[-1].strip():
        lines.pop()
    while len(gold_lines) > len(lines) and not gold_lines[-1].strip():
        gold_lines.pop()
    if len(lines) != len(gold_lines):
        raise DataError(
            f"{scores}: has {len(gold_lines)} lines for {len(lines)} pairs in {inputs.name}."
            " Restore the original files."
        )
    first, second, gold = [], [], []
    for line_number, (line, score) in enumerate(zip(lines, gold_lines, strict=True), start=1):
        if not score.strip():
            continue
        pair = line.split("\t")
        if len(pair) < 2:
            raise DataError(
                f"{inputs}:{line_number}: expected two sentences with a TAB between them."
            )
        first.append(pair[0].strip())
        second.append(pair[1].strip())
        gold.append(number(score, scores, line_number, "the score"))
    return Pairs(first, second, np.array(gold), len(lines) - len(gold))


def read_benchmark(path: Path) -> Pairs:
    """A part of STS-Benchmark: TAB-separated genre, file, year, id, score, sentence, sentence; no
    header."""
    return _read_table(path, columns=(5, 6, 4), first_line=1)


def read_sick(path: Path) -> Pairs:
    """A part of SICK: header, then TAB-separated id, sentence, sentence, relatedness,
    entailment."""
    return _read_table(path, columns=(1, 2, 3), first_line=2)


def _read_table(path: Path, columns: tuple[int, int, int], first_line: int) -> Pairs:
    left, right, score = columns
    first, second, gold, skipped = [], [], [], 0
    for line_number, line in enumerate(read_lines(path)[first_line - 1 :], start=first_line):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) <= max(columns):
            raise DataError(
                f"{path}:{line_number}: has {len(cells)} TAB-separated fields; expected at least"
                f" {max(columns) + 1}."
            )
        if not cells[score].strip():
            skipped += 1
            continue
        first.append(cells[left].strip())
        second.append(cells[right].strip())
        gold.append(number(cells[score], path, line_number, "the score"))
    return Pairs(first, second, np.array(gold), skipped)
