"""Merge prediction files into what EvalAI takes, once every one of them has been found right."""

from __future__ import annotations

import statistics
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from vlkd_cli.data.readers.elevater_sets import SetFacts, official_sets
from vlkd_cli.elevater.checking import CheckedFile, check_file, check_together
from vlkd_cli.elevater.predictions import (
    Row,
    are_numbers,
    header_text,
    read_predictions,
    row_text,
)
from vlkd_cli.elevater.score import SetScore, average
from vlkd_cli.errors import DataError, SubmissionError, UserError
from vlkd_cli.whole_file import whole_file

MEMBER = "all_predictions.json"
"""Name of the one file inside the zip, whatever the zip is called."""


class Submission(NamedTuple):
    """What was written."""

    path: Path
    scores: list[SetScore]
    """Local scores, of the data sets whose labels are known."""
    average: float | None
    """Mean over all data sets; None for a partial submission."""
    num_files: int


def submit(
    folder: Path,
    output: Path | None = None,
    *,
    partial: bool = False,
    trust_order: bool = False,
    sets: Mapping[str, SetFacts] | None = None,
) -> Submission:
    """Check every prediction file of a folder and write the zip.

    Args:
        folder: with one file per data set and seed, and `provenance/`.
        output: the zip; by default `all_predictions.zip` in the folder.
        partial: data sets may be missing, and few-shot seeds too.
        trust_order: take files whose row and class order cannot be verified for, such as the
            toolkit's own.
        sets: what a complete submission holds; by default ELEVATER's 20.

    Raises:
        DataError: something is wrong; one line per problem. Nothing is written then.

    Source: Elevater_Toolkit_IC @00d0af7, commands/prepare_submit.py (keys, order, rounding,
    compression); data sets by name and seeds by number instead of in the folder's order.
    """
    sets = official_sets() if sets is None else sets
    paths = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: no prediction files. Evaluate with `--suite elevater` first.")
    checked: list[CheckedFile] = []
    problems: list[str] = []
    for path in paths:
        file, found = check_file(path, sets, trust_order=trust_order)
        checked += [file] if file is not None else []
        problems += found
    checked.sort(key=lambda file: (_place(sets, file.dataset), file.seeds))
    problems += check_together(checked, sets, partial=partial)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise SubmissionError([f"submission rejected, {count}:", *problems])
    groups: dict[str, list[CheckedFile]] = {}
    for file in checked:
        groups.setdefault(file.dataset, []).append(file)
    output = output or folder / "all_predictions.zip"
    _write(output, groups)
    scores = [
        SetScore(
            name,
            sets[name].metric,
            tuple(seed for file in files for seed in file.seeds),
            tuple(v for file in files for v in file.scores),
        )
        for name, files in groups.items()
        if all(file.scores for file in files)
    ]
    return Submission(output, scores, average(scores, sets), len(checked))


def prediction_folder(run: Path) -> Path:
    """The folder of a run's prediction files: the folder itself, or the only one below an
    `elevater/` in it.

    Raises:
        DataError: there is none, or several; names them.
    """
    if not run.is_dir():
        raise DataError(
            f"'{run}' is not a folder. Give a run's folder, or the folder with its prediction"
            " files."
        )
    if any(_is_prediction_file(path) for path in run.glob("*.json")):
        return run
    found = sorted(
        {
            path.parent
            for path in run.rglob("*.json")
            if path.parent.parent.name == "elevater" and _is_prediction_file(path)
        }
    )
    if not found:
        raise DataError(
            f"{run}: no ELEVATER predictions. Evaluate with `vlkd eval {run} --suite elevater"
            " --data ROOT` first."
        )
    if len(found) > 1:
        raise DataError(
            f"{run}: predictions of several kinds. Submit one of them:"
            f" {', '.join(map(str, found))}."
        )
    return found[0]


def _is_prediction_file(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return '"dataset_name"' in file.read(4096)
    except (OSError, UnicodeDecodeError):
        return False


def _place(sets: Mapping[str, SetFacts], name: str) -> tuple[int, str]:
    names = list(sets)
    return (names.index(name) if name in sets else len(names), name)


def _write(output: Path, groups: Mapping[str, list[CheckedFile]]) -> None:
    try:
        with (
            whole_file(output) as path,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            # No time of writing, so that equal predictions give equal bytes.
            member = zipfile.ZipInfo(MEMBER)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                _write_merged(file, groups)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written: {error.strerror}. Choose another path with --output."
        ) from error


def _write_merged(file: IO[bytes], groups: Mapping[str, list[CheckedFile]]) -> None:
    file.write(b'{"data": [')
    for number, files in enumerate(groups.values()):
        file.write(b", " if number else b"")
        for text in _merged_record(files):
            file.write(text.encode("ascii"))
    file.write(b"]}")


def _merged_record(files: list[CheckedFile]) -> Iterator[str]:
    """One data set: fields of the first file, trainable parameters averaged, seeds and their
    predictions one after the other."""
    trainable = statistics.fmean(file.header.num_trainable_params for file in files)
    header = files[0].header._replace(
        num_trainable_params=round(trainable, 6),
        rnd_seeds=[seed for file in files for seed in file.header.rnd_seeds],
    )
    yield header_text(header._asdict()) + "["
    for number, file in enumerate(files):
        seed, separator = -1, "], [" if number else "["
        for event in read_predictions(file.path):
            if isinstance(event, Row):
                if event.seed != seed:
                    yield separator if seed < 0 else "], ["
                    seed = event.seed
                else:
                    yield ", "
                assert are_numbers(event.values), "checked before"
                yield row_text(event.values)
    yield "]]}"
