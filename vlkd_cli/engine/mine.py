"""`vlkd mine`: hard negative captions of a data set, as a table."""

from __future__ import annotations

import csv
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from vlkd_cli import console
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.keys import CAPTION, column_keys, key_of
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.collectives import gather_objects
from vlkd_cli.engine.encoder import subject_for
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.launching.launch import quieten_libraries, run_workers
from vlkd_cli.engine.launching.start import choose_placement
from vlkd_cli.engine.target import open_target
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.features.encode import (
    embed_images,
    embed_texts,
    normalize,
    require_equal_widths,
)
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.mining import Mined, Rules
from vlkd_cli.numerics.mining import mine as mine_rows
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.whole_file import whole_file

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class MineJob:
    """Arguments of a mining worker; plain values only.

    Args:
        target, overrides, runs, trust: see `open_target`.
        query: what captions are compared with.
        ranks: `FIRST:STOP`.
        num, absolute_margin, relative_margin, max_score, min_score: see `Rules`.
        positives: `caption`, `label` or a column: captions of samples with an equal one are not
            negatives of each other; None: what the recipe's contrast compares by, else captions.
    """

    target: str | None
    output: str
    query: Literal["image", "text"] = "image"
    num: int = 4
    ranks: str = "0:100"
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    positives: str | None = None
    overrides: tuple[str, ...] = ()
    runs: str = "runs"
    trust: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def rules(self) -> Rules:
        """The rules in numbers.

        Raises:
            UserError: the range is not one.
        """
        first, colon, stop = self.ranks.partition(":")
        try:
            start, end = int(first or 0), int(stop) if stop else None
        except ValueError:
            start, end = -1, None
        if not colon or start < 0 or (end is not None and end <= start):
            raise UserError(
                f"--range {self.ranks}: two ranks, the smaller first, from 0, e.g. 0:100 or 10:."
            )
        if end is not None and end - start < self.num:
            raise UserError(
                f"--num {self.num} is more than the {end - start} ranks of --range {self.ranks}."
            )
        least, most = self.min_score, self.max_score
        if least is not None and most is not None and most < least:
            raise UserError(
                f"--max-score {most} is below --min-score {least}, so no caption is left."
            )
        return Rules(
            self.num,
            start,
            end,
            self.absolute_margin,
            self.relative_margin,
            self.max_score,
            self.min_score,
        )


def start_mining(job: MineJob, *, gpus: int | None, cpu_workers: int | None) -> int:
    """Check what can be checked at once, then mine in one process or several.

    Returns:
        0, or the number of the signal that stopped it.
    """
    quieten_libraries()
    job.rules()
    path = Path(job.output)
    if path.suffix not in SEPARATORS:
        raise UserError(f"OUT {path}: name a .csv or .tsv file.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"OUT {path}: there is no folder {path.parent}. Make it first.")
    placement = choose_placement(gpus, cpu_workers)
    job = replace(job, device="cuda" if placement.device == "cuda" else "cpu")
    return run_workers(mine, job, placement, path.with_name(f"{path.name}.logs"))


def mine(job: MineJob) -> int:
    """Mine and write; 0, or the number of the signal that stopped it."""
    with Interruption().watched() as interruption:
        try:
            with interruption.dropping():
                _mine(job)
        except Interrupted:
            return interruption.signal_number or signal.SIGINT
    return 0


class _Captions(NamedTuple):
    """The captions of a data set.

    Args:
        texts: the different ones.
        own: of each sample, its captions as they are read.
        rows: of each sample, which of `texts` these are.
        samples: positions of the samples that have any.
    """

    texts: list[str]
    own: list[Sequence[str]]
    rows: list[list[int]]
    samples: list[int]


def _mine(job: MineJob) -> None:
    opened = open_target(job.target, job.overrides, runs=Path(job.runs), trust=job.trust)
    if opened.recipe.data is None:
        raise UserError(
            f"{opened.described}: it has no `data:` to mine. Add --set 'data={{reader: csv, path:"
            " FILE}'."
        )
    reader = open_reader(opened.recipe.data)
    if not isinstance(reader, Reader):
        raise DataError("mining needs random access to samples, but the data is a stream.")
    if not reader.has_captions:
        raise DataError("mining needs captions, and the data has none.")
    subject = subject_for(opened, job.device)
    console.note(f"Mining with {opened.described}")
    captions = _captions(reader)
    matching = job.positives or _positives_of(opened.recipe)
    mined = _mined(subject, reader, captions, matching, job)
    if runtime.is_main():
        columns = _carried(opened.recipe, reader, matching)
        _write(job, reader, captions, columns, matching, mined)


def _positives_of(recipe: Recipe) -> str:
    """What samples match by in the recipe's contrast."""
    words = [spec.keys.get("positives") for spec in recipe.distillers]
    return next((str(word) for word in words if word not in (None, "diagonal")), CAPTION)


def _carried(recipe: Recipe, reader: Reader, matching: str) -> Mapping[str, Sequence[str]]:
    """Columns of the data that training on the table reads too, by name."""
    used = [matching, *(spec.keys.get("grade") for spec in recipe.distillers)]
    if recipe.data is not None:
        used.append(recipe.data.distinct)
    columns: dict[str, Sequence[str]] = {}
    for name in used:
        if name == "label":
            columns[name] = [_class_of(reader, index) for index in range(len(reader))]
        elif isinstance(name, str) and name not in (CAPTION, *columns):
            columns[name] = reader.column(name)
    return columns


def _class_of(reader: Reader, index: int) -> str:
    label, classes = reader.label(index), reader.classes or ()
    if label < 0:
        return ""
    return classes[label] if label < len(classes) else str(label)


def _captions(reader: Reader) -> _Captions:
    """Captions that differ in white space only are one."""
    numbers: dict[int, int] = {}
    found = _Captions([], [], [], [])
    for index in range(len(reader)):
        try:
            texts = reader.captions(index)[slice(*reader.text_span(index))]
        except Broken:
            continue  # as in training, the sample is left out
        texts = [text for text in texts if text.strip()]
        if not texts:
            continue
        rows = []
        for text in texts:
            row = numbers.setdefault(key_of(text), len(numbers))
            if row == len(found.texts):
                found.texts.append(text)
            rows.append(row)
        found.own.append(texts)
        found.rows.append(rows)
        found.samples.append(index)
    if not found.samples:
        raise DataError("mining needs captions, and no sample has one.")
    return found


def _same_key(reader: Reader, captions: _Captions, matching: str) -> list[np.ndarray] | None:
    """Of each sample with captions, the rows of those of samples with its key; None where samples
    match by their captions, of which equal ones are one row."""
    if matching == CAPTION:
        return None
    if matching == "label":
        keys = reader.labels_of(np.arange(len(reader)))
    else:
        keys = column_keys(reader, matching)
    groups: dict[int, list[int]] = {}
    for index, rows in zip(captions.samples, captions.rows, strict=True):
        if keys[index] >= 0:
            groups.setdefault(int(keys[index]), []).extend(rows)
    found = {key: np.unique(rows) for key, rows in groups.items()}
    none = np.empty(0, dtype=np.int64)
    return [found.get(int(keys[index]), none) for index in captions.samples]


def _mined(
    subject: Subject, reader: Reader, captions: _Captions, matching: str, job: MineJob
) -> Mined:
    """The negatives of every query, in order: of each sample, or of each of its captions."""
    same = _same_key(reader, captions, matching)
    corpus = normalize(embed_texts(subject, captions.texts))
    if job.query == "image":
        queries = normalize(embed_images(subject, reader, indices=captions.samples))
        require_equal_widths(queries.shape[1], corpus.shape[1], "mine")
        positives: list[list[int]] = captions.rows
        owners = list(range(len(captions.samples)))
    else:
        queries = corpus[[row for rows in captions.rows for row in rows]]
        positives = [rows for rows in captions.rows for _ in rows]
        owners = [row for row, rows in enumerate(captions.rows) for _ in rows]
    own = range(runtime.rank(), len(queries), runtime.world_size())
    part = mine_rows(
        queries[own.start :: own.step],
        corpus,
        job.rules(),
        # Captions that are equal are one row of the corpus, and among the positives.
        query_keys=np.full(len(own), -1),
        corpus_keys=np.arange(len(corpus)),
        positives=[positives[query] for query in own],
        left_out=None if same is None else [same[owners[query]] for query in own],
    )
    parts = gather_objects(part)
    rows = np.empty((len(queries), job.num), dtype=np.int64)
    scores = np.empty((len(queries), job.num), dtype=np.float32)
    for rank, each in enumerate(parts):
        rows[rank :: len(parts)], scores[rank :: len(parts)] = each
    return Mined(rows, scores)


def _write(
    job: MineJob,
    reader: Reader,
    captions: _Captions,
    columns: Mapping[str, Sequence[str]],
    matching: str,
    mined: Mined,
) -> None:
    path = Path(job.output)
    names = [f"negative_{number}" for number in range(1, job.num + 1)]
    try:
        with (
            whole_file(path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file, delimiter=SEPARATORS[path.suffix])
            has_images = reader.image(captions.samples[0]) is not None
            own = ["filepath", "title"] if has_images else ["title"]
            columns = {name: cells for name, cells in columns.items() if name not in own}
            table.writerow([*own, *columns, *names])
            last, address = -1, list[str]()
            for sample, text, query in _rows(captions, job.query):
                negatives = [captions.texts[row] if row >= 0 else "" for row in mined.rows[query]]
                if has_images and sample != last:
                    last, address = sample, [_address(reader, sample, path)]
                cells = [cells[sample] for cells in columns.values()]
                table.writerow([*address, text, *cells, *negatives])
    except OSError as error:
        raise UserError(
            f"OUT {path} cannot be written: {error.strerror or error}. Free space or name another"
            " file."
        ) from error
    short = int((mined.rows < 0).any(axis=1).sum())
    what = "images" if job.query == "image" else "captions"
    console.say(
        f"Negatives: {path} ({len(captions.texts):,} captions; {short:,} of"
        f" {len(mined.rows):,} {what} have fewer than {job.num})"
    )
    _say_how_to_train(path, has_images, names, captions, matching)


def _say_how_to_train(
    path: Path, has_images: bool, names: Sequence[str], captions: _Captions, matching: str
) -> None:
    keys = f"reader: csv, path: {path}{'' if has_images else ', image: null'}"
    keys += f", texts: {{hard: [{', '.join(names)}]}}"
    if matching == "label":
        keys += ", label: label"
    elif matching == CAPTION and has_images and any(len(own) > 1 for own in captions.own):
        # A row is a sample, and two captions of an image would be negatives of each other.
        keys += ", distinct: filepath"
    positives = "" if matching == CAPTION else f"`positives: {matching}` and "
    console.say(
        f"Train on them: data: {{{keys}}} and {positives}`negatives: text@hard` in the distiller."
    )


def _rows(captions: _Captions, query: str) -> Iterator[tuple[int, str, int]]:
    """Sample, caption and query of each row of the table."""
    number = 0
    for row, (sample, texts) in enumerate(zip(captions.samples, captions.own, strict=True)):
        for text in texts:
            yield sample, text, row if query == "image" else number
            number += 1


def _address(reader: Reader, sample: int, table: Path) -> str:
    """Where the image of a sample is; one that is not a file is written next to the table."""
    image = reader.image(sample)
    if isinstance(image, str):
        return str(Path(image).absolute())
    folder = table.with_name(f"{table.stem}_images")
    folder.mkdir(exist_ok=True)
    file = folder / f"{sample:07d}.png"
    # Also where there is one: it may be of other data that was mined to the same table.
    if isinstance(image, Image.Image):
        image.save(file)
    elif image is not None:
        file.write_bytes(image)
    return str(file.absolute())
