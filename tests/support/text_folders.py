"""Small folders in the layouts of the text evaluations, and a reader of their sentences' meaning:
the perfect encoder.

Sentences are made up: `gold2.5` is a pair's human score, `class1` a class, `topic7` what a passage
or a section is about.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.support.fakes import FakeTower, random_feature
from vlkd_cli.evaluation.datasets.senteval_tasks import PROBING
from vlkd_cli.evaluation.suites.sts import SUBSETS
from vlkd_cli.features.subject import Subject

WIDTH = 18

_FILLER = ("one", "two", "three", "four", "five", "six")


def meaning(text: str) -> Tensor:
    """The feature of a made-up text: its score as an angle to `left`, its class or topic as a
    direction with a trace of the rest."""
    gold, kind = re.search(r"gold(\d+(?:\.\d+)?)", text), re.search(r"(class|topic)\w+", text)
    feature = torch.zeros(WIDTH)
    share = float(gold[1]) / 5 if gold else 1.0
    feature[:2] = torch.tensor([share, (1 - share**2) ** 0.5])
    if kind:
        feature[2:] = torch.nn.functional.normalize(random_feature(WIDTH - 2, 7)(kind[0]), dim=0)
        # Only classes and topics: pairs of equal score must tie exactly.
        feature = feature + 1e-4 * random_feature(WIDTH, 8)(text)
    return feature


def perfect_subject(**keys: object) -> Subject:
    return Subject(None, FakeTower("text", meaning, WIDTH, name="perfect"), batch_size=16, **keys)  # type: ignore[arg-type]


def random_subject(**keys: object) -> Subject:
    return Subject(
        None,
        FakeTower("text", random_feature(WIDTH, 3), WIDTH, name="random"),
        batch_size=16,
        **keys,
    )  # type: ignore[arg-type]


def write_sts(root: Path, *, pairs: int = 12, seed: int = 0) -> Path:
    """`downstream/STS` and `downstream/SICK` with every set of suite sts; the first pair of STS13's
    headlines has no gold score."""
    random = np.random.RandomState(seed)
    for year, subsets in SUBSETS.items():
        folder = root / "downstream" / "STS" / f"{year}-en-test"
        folder.mkdir(parents=True)
        for subset in subsets:
            scores = [f"{score:.2f}" for score in random.permutation(np.linspace(0, 5, pairs))]
            lines = [
                f"left {year} {subset} {place}\tright gold{score} {place}"
                for place, score in enumerate(scores)
            ]
            if (year, subset) == ("STS13", "headlines"):
                scores[0] = ""
            _write(folder / f"STS.input.{subset}.txt", lines)
            _write(folder / f"STS.gs.{subset}.txt", scores)
    for part in ("train", "dev", "test"):
        scores = [f"{score:.3f}" for score in random.permutation(np.linspace(0, 5, pairs))]
        lines = [
            f"main\tfile\t2012\t{place:04d}\t{score}\tleft {part} {place}\tright gold{score}"
            for place, score in enumerate(scores)
        ]
        _write(root / "downstream" / "STS" / "STSBenchmark" / f"sts-{part}.csv", lines)
    for part in ("train", "trial", "test_annotated"):
        lines = ["pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"]
        for place, score in enumerate(random.permutation(np.linspace(1, 5, pairs))):
            label = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")[place % 3]
            lines.append(
                f"{place}\tleft {part} {place}\tright gold{score:.3f}"
                f" class{label}\t{score:.3f}\t{label}"
            )
        _write(root / "downstream" / "SICK" / f"SICK_{part}.txt", lines)
    return root


def write_senteval(root: Path, *, items: int = 40) -> Path:
    """`downstream` and `probing` with every task of suite senteval; `items` sentences in each
    part."""
    write_sts(root, pairs=items)
    down = root / "downstream"
    for folder, files in {
        "MR": ("rt-polarity.neg", "rt-polarity.pos"),
        "CR": ("custrev.neg", "custrev.pos"),
        "SUBJ": ("subj.subjective", "subj.objective"),
        "MPQA": ("mpqa.neg", "mpqa.pos"),
    }.items():
        for label, file in enumerate(files):
            # An accented letter in Latin-1 is not valid UTF-8.
            lines = [f"caf\xe9 {_sentence(place)} class{label} " for place in range(items // 2)]
            _write(down / folder / file, lines, "latin-1")
    for part in ("train", "dev", "test"):
        _write(
            down / "SST/binary" / f"sentiment-{part}",
            [f"{_sentence(i)} {part} class{i % 2} \t{i % 2}" for i in range(items)],
        )
        _write(
            down / "SST/fine" / f"sentiment-{part}",
            [f"{i % 5} {_sentence(i)} {part} class{i % 5}" for i in range(items)],
        )
    kinds = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    for file in ("train_5500.label", "TREC_10.label"):
        lines = [
            f"{kinds[i % 6]}:fine caf\xe9 {_sentence(i)} {file[:5]} class{kinds[i % 6]} ?"
            for i in range(items)
        ]
        _write(down / "TREC" / file, lines, "latin-1")
    for part in ("train", "test"):
        lines = [
            f"{i % 2}\t{i}\t{i}\tleft {_sentence(i)} {part}\tright class{i % 2} {part} {i}"
            for i in range(items)
        ]
        _write(
            down / "MRPC" / f"msr_paraphrase_{part}.txt",
            ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", *lines],
        )
    for task in PROBING.values():
        lines = [
            f"{part}\tL{i % 3}\t{_sentence(i)} {part} class{i % 3}"
            for part in ("tr", "va", "te")
            for i in range(items)
        ]
        _write(root / task.files[0], lines)
    return root


def write_word_similarity(root: Path, *, pairs: int = 40) -> Path:
    """The three lists in three spellings: TAB without a header, SimLex's native columns, and commas
    with a header."""
    random = np.random.RandomState(5)

    def rows() -> list[tuple[str, str, str]]:
        scores = [f"{score:.2f}" for score in random.permutation(np.linspace(0, 5, pairs))]
        return [
            (f"left{place}", f"right{place}gold{score}", score)
            for place, score in enumerate(scores)
        ]

    _write(root / "EN-RG-65.txt", ["\t".join(row) for row in rows()])
    header = "word1\tword2\tPOS\tSimLex999\tconc(w1)\tconc(w2)"
    _write(
        root / "SimLex-999.txt",
        [header, *(f"{one}\t{two}\tN\t{score}\t1.0\t2.0" for one, two, score in rows())],
    )
    _write(
        root / "combined.csv", ["Word 1,Word 2,Human (mean)", *(", ".join(row) for row in rows())]
    )
    return root


def write_wiki_sections(root: Path, *, triplets: int = 60) -> Path:
    """`test.csv`; sentences with commas and quotes in them."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "test.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Sentence1", "Sentence2", "Sentence3"])
        for i in range(triplets):
            writer.writerow(
                [
                    f'topic{i}, say "so"',
                    f"topic{i} again, {i}",
                    f"topic{i + 1} of another section",
                ]
            )
    return root


def write_beir(root: Path, *, passages: int = 50, queries: int = 10) -> Path:
    """A BEIR folder: query i is answered by passages i and i + queries, the second with the higher
    grade."""
    _write(
        root / "corpus.jsonl",
        [
            json.dumps(
                {
                    "_id": f"d{i}",
                    "title": f"title {i}",
                    "text": f"topic{i % queries} {i}" if i < 2 * queries else f"topicother{i}",
                }
            )
            for i in range(passages)
        ],
    )
    _write(
        root / "queries.jsonl",
        [json.dumps({"_id": f"q{i}", "text": f"what is topic{i}"}) for i in range(queries)],
    )
    judgments = [
        f"q{i}\td{i + extra}\t{grade}"
        for i in range(queries)
        for extra, grade in ((0, 1), (queries, 2))
    ]
    _write(root / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judgments])
    return root


def write_marco(root: Path, *, passages: int = 50, queries: int = 10, small: bool = True) -> Path:
    """MS MARCO's files: query i is answered by passage 7 i; the full judgments cover as many
    further queries."""
    answers = {7 * i % passages: i for i in range(queries)}
    _write(
        root / "collection.tsv",
        [f"{i}\ttopic{answers.get(i, f'other{i}')} passage {i}" for i in range(passages)],
    )
    _write(
        root / "queries.dev.small.tsv", [f"{1000 + i}\twhat is topic{i}" for i in range(queries)]
    )
    lines = [f"{1000 + i}\t0\t{7 * i % passages}\t1" for i in range(queries)]
    _write(root / "qrels.dev.tsv", [*lines, *(f"{2000 + i}\t0\t{i}\t1" for i in range(queries))])
    if small:
        _write(root / "qrels.dev.small.tsv", lines)
    return root


def write_captioned(root: Path, *, items: int = 60, classes: int = 3) -> Path:
    """`train.csv` and `test.csv` with columns image, caption, label; the images are nowhere."""
    for part in ("train", "test"):
        rows = [
            f"{part}{i}.jpg,{_sentence(i)} {part} class{i % classes},{i % classes}"
            for i in range(items)
        ]
        _write(root / f"{part}.csv", ["filepath,caption,label", *rows])
    return root


def _sentence(place: int) -> str:
    return " ".join(_FILLER[: 1 + place % len(_FILLER)]) + f" {place}"


def _write(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
