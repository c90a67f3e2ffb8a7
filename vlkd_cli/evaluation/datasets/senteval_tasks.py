"""SentEval's tasks: their files, how these are read, and which scheme scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.files.texts import number, read_lines
from vlkd_cli.errors import DataError

Scheme = Literal["nested", "folds", "split", "relatedness"]


class Part(NamedTuple):
    """Sentences, or pairs of them, with labels (class numbers, or scores for relatedness)."""

    first: list[str]
    second: list[str] | None
    labels: NDArray[np.int64] | NDArray[np.float64]


class Task(NamedTuple):
    """One task of SentEval.

    Args:
        files: below the folder that holds `downstream` and `probing`.
        scheme: nested cross-validation; cross-validation and a test set; train, dev and test; or
            the regressor.
        read: the files, in that order, to parts (one, train and test, or train, dev and test).
        linear: always a linear classifier.
        f1: the binary F1 of class 1 is reported too.
    """

    files: tuple[str, ...]
    scheme: Scheme
    read: Callable[[Sequence[Path]], list[Part]]
    linear: bool = False
    f1: bool = False


def _sentence(text: str) -> str:
    """A tokenized sentence with single blanks."""
    return " ".join(text.split())


def _sorted_part(
    rows: list[tuple[tuple[str, ...], float | str]], labels: dict[str, int] | None = None
) -> Part:
    """Rows by number of tokens, then by label, as SentEval orders them: the folds depend on it.

    An empty sentence becomes a full stop, which every encoder can take.

    Args:
        rows: one or two sentences, and a label.
        labels: class numbers of labels that are words; applied before the rows are sorted.
    """
    numbered = [
        (sentences, labels[str(label)] if labels is not None else label)
        for sentences, label in rows
    ]
    numbered.sort(key=lambda row: (*(len(sentence.split()) for sentence in row[0]), row[1]))
    values = np.array([label for _, label in numbered])
    paired = bool(numbered) and len(numbered[0][0]) == 2
    second = [sentences[1] or "." for sentences, _ in numbered] if paired else None
    return Part([sentences[0] or "." for sentences, _ in numbered], second, values)


def _polar(paths: Sequence[Path]) -> list[Part]:
    """Two files of one sentence a line: class 1, then class 0."""
    rows: list[tuple[tuple[str, ...], float | str]] = []
    for label, path in zip((1, 0), paths, strict=True):
        rows.extend(((_sentence(line),), label) for line in read_lines(path, "latin-1"))
    return [_sorted_part(rows)]


def _sst2(paths: Sequence[Path]) -> list[Part]:
    return [
        _sorted_part(
            [((_sentence(row[0]),), _class(row[1], 2, where)) for where, row in _fields(path, 2)]
        )
        for path in paths
    ]


def _sst5(paths: Sequence[Path]) -> list[Part]:
    parts = []
    for path in paths:
        lines = enumerate(read_lines(path), start=1)
        parts.append(
            _sorted_part(
                [
                    ((_sentence(line[2:]),), _class(line[:1], 5, f"{path}:{line_number}"))
                    for line_number, line in lines
                    if line.strip()
                ]
            )
        )
    return parts


def _trec(paths: Sequence[Path]) -> list[Part]:
    classes = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    parts = []
    for path in paths:
        rows: list[tuple[tuple[str, ...], float | str]] = []
        for line_number, line in enumerate(read_lines(path, "latin-1"), start=1):
            if not line.strip():
                continue
            kind, colon, question = line.partition(":")
            fine, blank, text = question.partition(" ")
            if kind not in classes or not colon or not blank or not fine:
                raise DataError(
                    f"{path}:{line_number}: expected 'COARSE:fine question' with one of"
                    f" {', '.join(classes)}; found '{line[:40]}'."
                )
            rows.append(((_sentence(text),), classes.index(kind)))
        parts.append(_sorted_part(rows))
    return parts


def _mrpc(paths: Sequence[Path]) -> list[Part]:
    return [
        _sorted_part(
            [
                ((_sentence(row[3]), _sentence(row[4])), _class(row[0], 2, where))
                for where, row in _fields(path, 5, header=True)
            ]
        )
        for path in paths
    ]


def _sick_entailment(paths: Sequence[Path]) -> list[Part]:
    classes = {"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2}
    parts = []
    for path in paths:
        rows: list[tuple[tuple[str, ...], float | str]] = []
        for where, row in _fields(path, 5, header=True):
            if row[4].strip() not in classes:
                raise DataError(
                    f"{where}: the entailment judgment should be one of {', '.join(classes)} and"
                    f" is '{row[4][:40]}'."
                )
            rows.append(((_sentence(row[1]), _sentence(row[2])), row[4].strip()))
        parts.append(_sorted_part(rows, classes))
    return parts


def _sick_relatedness(paths: Sequence[Path]) -> list[Part]:
    return [
        _sorted_part(
            [
                ((_sentence(row[1]), _sentence(row[2])), _score(row[3], where))
                for where, row in _fields(path, 5, header=True)
            ]
        )
        for path in paths
    ]


def _sts_benchmark(paths: Sequence[Path]) -> list[Part]:
    return [
        _sorted_part(
            [
                ((_sentence(row[5]), _sentence(row[6])), _score(row[4], where))
                for where, row in _fields(path, 7)
            ]
        )
        for path in paths
    ]


def _probing(paths: Sequence[Path]) -> list[Part]:
    """One file: partition, label, ..., sentence; class numbers are the sorted order of the training
    labels."""
    (path,) = paths
    rows: dict[str, list[tuple[tuple[str, ...], float | str]]] = {"tr": [], "va": [], "te": []}
    for where, row in _fields(path, 3):
        if row[0] not in rows:
            raise DataError(
                f"{where}: the partition should be tr, va or te and is '{row[0][:40]}'."
            )
        rows[row[0]].append(((_sentence(row[-1]),), row[1]))
    names = sorted({str(label) for _, label in rows["tr"]})
    classes = {name: number for number, name in enumerate(names)}
    strange = sorted({str(label) for part in rows.values() for _, label in part} - set(classes))
    if strange:
        raise DataError(f"{path}: labels without training sentences: {', '.join(strange[:5])}.")
    return [_sorted_part(part, classes) for part in rows.values()]


def _fields(path: Path, fewest: int, *, header: bool = False) -> list[tuple[str, list[str]]]:
    """TAB-separated fields of every line that is not blank, each with "file:line"."""
    rows = []
    for line_number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or (header and line_number == 1):
            continue
        cells = line.split("\t")
        if len(cells) < fewest:
            raise DataError(
                f"{path}:{line_number}: has {len(cells)} TAB-separated fields; expected {fewest}."
            )
        rows.append((f"{path}:{line_number}", cells))
    return rows


def _class(text: str, classes: int, where: str) -> int:
    if text.strip() not in {str(label) for label in range(classes)}:
        raise DataError(
            f"{where}: the label should be a number from 0 to {classes - 1} and is '{text[:40]}'."
        )
    return int(text)


def _score(text: str, where: str) -> float:
    path, _, line = where.rpartition(":")
    return number(text, Path(path), int(line), "the score")


def _parts(folder: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"downstream/{folder}/{name}" for name in names)


_SICK = _parts("SICK", ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt"))
_SST = ("sentiment-train", "sentiment-dev", "sentiment-test")

TRANSFER = {
    "MR": Task(_parts("MR", ("rt-polarity.pos", "rt-polarity.neg")), "nested", _polar),
    "CR": Task(_parts("CR", ("custrev.pos", "custrev.neg")), "nested", _polar),
    "SUBJ": Task(_parts("SUBJ", ("subj.objective", "subj.subjective")), "nested", _polar),
    "MPQA": Task(_parts("MPQA", ("mpqa.pos", "mpqa.neg")), "nested", _polar),
    "SST2": Task(_parts("SST/binary", _SST), "split", _sst2),
    "SST5": Task(_parts("SST/fine", _SST), "split", _sst5),
    "TREC": Task(_parts("TREC", ("train_5500.label", "TREC_10.label")), "folds", _trec),
    "MRPC": Task(
        _parts("MRPC", ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")),
        "folds",
        _mrpc,
        f1=True,
    ),
    "SICK-E": Task(_SICK, "split", _sick_entailment),
    "SICK-R": Task(_SICK, "relatedness", _sick_relatedness),
    "STS-B": Task(
        _parts("STS/STSBenchmark", ("sts-train.csv", "sts-dev.csv", "sts-test.csv")),
        "relatedness",
        _sts_benchmark,
    ),
}

PROBING = {
    name: Task((f"probing/{file}.txt",), "split", _probing, linear=name == "WordContent")
    for name, file in {
        "Length": "sentence_length",
        "WordContent": "word_content",
        "Depth": "tree_depth",
        "TopConstituents": "top_constituents",
        "BigramShift": "bigram_shift",
        "Tense": "past_present",
        "SubjNumber": "subj_number",
        "ObjNumber": "obj_number",
        "OddManOut": "odd_man_out",
        "CoordinationInversion": "coordination_inversion",
    }.items()
}

TASKS: dict[str, Task] = {**TRANSFER, **PROBING}
