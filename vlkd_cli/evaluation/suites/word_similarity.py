"""Word similarity: does the cosine of two words follow human ratings?"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.data.files.texts import read_lines
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.prompts import prompts
from vlkd_cli.evaluation.datasets.text_files import file_hashes, find_folder
from vlkd_cli.evaluation.metrics.correlation import pair_similarity, spearman
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import Point, embed_texts, normalize
from vlkd_cli.features.subject import Subject

KNOWN = {
    "RG65": ("EN-RG-65.txt", "rg65.csv", "RG65.txt", "rg65.txt", "RG-65.txt"),
    "SimLex999": (
        "SimLex-999.txt",
        "SimLex-999/SimLex-999.txt",
        "EN-SIMLEX-999.txt",
        "simlex999.csv",
    ),
    "WordSim353": ("EN-WS-353-ALL.txt", "combined.tab", "combined.csv", "wordsim353.csv"),
}
"""The sets and the file names under which they are spread."""


class WordPairs(NamedTuple):
    """Word pairs and their human scores."""

    first: list[str]
    second: list[str]
    gold: NDArray[np.float64]


class WordSimilarity(Suite):
    """RG-65, SimLex-999 and WordSim-353: Spearman of the words' cosine against the human score,
    average ranks for ties.

    A word whose feature is all zeros has no vector in the tower (static word vectors); its pairs
    are counted and reported in any case. Contextual towers know every word.

    Args:
        data: folder with the files, in their native or the short format; by default `--data`.
        files: other lists of that folder instead of the three known ones, e.g. EN-MC-30.txt.
        templates: `none` embeds the bare word; `prototype` the mean of its normalized template
            embeddings; `expand` repeats every pair for every template and takes one Spearman over
            all rows (ITRA's way, for parity only: the templates' own noise enters).
        template_set: a list, a file, or a named set of templates, as in suite zero_shot.
        oov: pairs with a word that has no vector: `skip` them (eval-word-vectors), give them
            similarity 0 (`zero`, ITRA), or the `mean` vector of the list's known words instead of
            the missing one.
        lowercase: embed words in lower case (WordSim-353 writes names with a capital, which uncased
            static vectors lack).
        features: features after the head, or before it.
    """

    modalities = frozenset({"text"})
    libraries = ("scipy",)

    def __init__(
        self,
        *,
        data: str | None = None,
        files: list[str] | None = None,
        templates: Literal["none", "prototype", "expand"] = "none",
        template_set: str | list[str] = "open_clip:imagenet",
        oov: Literal["skip", "zero", "mean"] = "skip",
        lowercase: bool = False,
        features: Literal["head", "backbone"] = "head",
    ) -> None:
        self.data, self.files = data, files
        self.templates, self.template_set = templates, template_set
        self.oov, self.lowercase = oov, lowercase
        self.features: Point = features

    def open(self, subject: Subject) -> tuple[Path, dict[str, str]]:
        """The folder, and the file of each set that is there."""
        holds = (
            tuple(self.files)
            if self.files
            else tuple(file for names in KNOWN.values() for file in names)
        )
        root = find_folder(
            subject,
            self.data,
            "word_similarity",
            holds=holds,
            below=("wordsim", "word_similarity", "word-sim"),
        )
        return root, self._chosen(root)

    def measures(self, opened: tuple[Path, dict[str, str]]) -> Measures:
        return Measures(list(opened[1]), ["spearman", "coverage"])

    def run(self, subject: Subject) -> list[Result]:
        root, chosen = self.open(subject)
        return [self._evaluate(subject, root, name, file) for name, file in chosen.items()]

    def _chosen(self, root: Path) -> dict[str, str]:
        if self.files:
            missing = [file for file in self.files if not (root / file).is_file()]
            if missing:
                raise DataError(f"suite 'word_similarity': {root} lacks {', '.join(missing)}.")
            return {Path(file).stem: file for file in self.files}
        found = {
            name: next((file for file in files if (root / file).is_file()), "")
            for name, files in KNOWN.items()
        }
        missing = [
            f"{name} ({' or '.join(KNOWN[name])})" for name, file in found.items() if not file
        ]
        if missing:
            console.warn(f"suite 'word_similarity': {root} lacks {'; '.join(missing)}.")
        return {name: file for name, file in found.items() if file}

    def _evaluate(self, subject: Subject, root: Path, name: str, file: str) -> Result:
        pairs = read_pairs(root / file)
        if self.lowercase:
            pairs = pairs._replace(
                first=[word.lower() for word in pairs.first],
                second=[word.lower() for word in pairs.second],
            )
        words = list(dict.fromkeys([*pairs.first, *pairs.second]))
        known, vectors = self._vectors(subject, words)
        row = {word: number for number, word in enumerate(words)}
        first, second = (
            np.array([row[word] for word in side]) for side in (pairs.first, pairs.second)
        )
        covered = known[first] & known[second]
        score, used = score_pairs(vectors, first, second, pairs.gold, known, self.oov)
        unknown = sorted(word for word, has in zip(words, known, strict=True) if not has)
        if unknown:
            listed = ", ".join(unknown[:10]) + (
                f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            )
            console.warn(
                f"{name}: {int((~covered).sum())} of {len(covered)} pairs have a word without a"
                f" vector ({listed}); oov: {self.oov}."
            )
        return self.result(
            subject,
            DataIdentity(name, "test", file_hashes(root, [file])),
            protocol=f"templates_{self.templates}-oov_{self.oov}",
            metrics={"spearman": score, "coverage": float(covered.mean())},
            primary_metric="spearman",
            chance={"spearman": 0.0},
            num_items=used,
            num_skipped=len(covered) - used,
            details={
                "pairs_without_vector": int((~covered).sum()),
                "words_without_vector": unknown,
            },
        )

    def _vectors(
        self, subject: Subject, words: Sequence[str]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which words have a vector `[W]`, and their vectors `[W, templates, D]`."""
        known = embed_texts(subject, words, point="backbone").abs().amax(dim=1).numpy() > 0
        if self.templates == "none":
            return known, embed_texts(subject, words, point=self.features).numpy()[:, None]
        filled = prompts(words, Reader(), self.template_set, "imagenet")
        texts = [text for own in filled for text in own]
        vectors = embed_texts(subject, texts, point=self.features).unflatten(
            0, (len(words), len(filled[0]))
        )
        if self.templates == "prototype":
            vectors = normalize(vectors).mean(dim=1, keepdim=True)
        return known, vectors.numpy()


def score_pairs(
    vectors: NDArray[np.float32],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    gold: NDArray[np.float64],
    known: NDArray[np.bool_],
    oov: Literal["skip", "zero", "mean"],
) -> tuple[float, int]:
    """Spearman of the cosine against the human score, and how many pairs it is over.

    Args:
        vectors: `[W, templates, D]`; with several templates every pair counts once for each.
        first: the pairs' first words, `[N]`, as rows of `vectors`.
        second: the other words, `[N]`.
        gold: human scores `[N]`.
        known: whether a word has a vector, `[W]`.
        oov: what happens to pairs with a word that has none.

    Raises:
        DataError: fewer than two pairs are left.
    """
    num_pairs = len(gold)
    if oov == "skip":
        covered = known[first] & known[second]
        first, second, gold = first[covered], second[covered], gold[covered]
    elif not known.all():
        vectors = vectors.copy()
        vectors[~known] = 0 if oov == "zero" or not known.any() else vectors[known].mean(axis=0)
    if len(gold) < 2:
        raise DataError(
            f"word similarity: {len(gold)} of {num_pairs} pairs have vectors for both words; a"
            " correlation needs two."
        )
    templates = vectors.shape[1]
    left, right = (vectors[side].reshape(len(side) * templates, -1) for side in (first, second))
    return spearman(pair_similarity(left, right), np.repeat(gold, templates)), len(gold)


def read_pairs(path: Path) -> WordPairs:
    """Word, word, score from any of the usual spellings: TAB, semicolon, comma or blanks between
    them, with or without a header.

    A header is a first line whose third field is not a number; its column `SimLex999` is the score
    where it has one. Further columns are ignored.

    Raises:
        DataError: a line has fewer than three fields, or a score that is not a number.
    """
    lines = [
        (line_number, line)
        for line_number, line in enumerate(read_lines(path), start=1)
        if line.strip()
    ]
    if not lines:
        raise DataError(f"{path}: holds no word pairs.")
    separator = next((mark for mark in ("\t", ";", ",") if mark in lines[0][1]), None)
    rows = [
        (line_number, [cell.strip() for cell in _cells(line, separator)])
        for line_number, line in lines
    ]
    column = 2
    header = rows[0][1]
    if len(header) > 2 and not _is_number(header[2]):
        column = header.index("SimLex999") if "SimLex999" in header else 2
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path}: holds no word pairs below its header.")
    for line_number, cells in rows:
        if len(cells) <= column or not _is_number(cells[column]) or not cells[0] or not cells[1]:
            raise DataError(
                f"{path}:{line_number}: expected two words and a score; found"
                f" '{' '.join(cells)[:60]}'."
            )
    return WordPairs(
        [cells[0] for _, cells in rows],
        [cells[1] for _, cells in rows],
        np.array([float(cells[column]) for _, cells in rows]),
    )


def _cells(line: str, separator: str | None) -> list[str]:
    """The fields of a line; they may be quoted only in tables with commas or semicolons."""
    if separator in (",", ";") and '"' in line:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    return line.split(separator)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
