"""Local folders of the text evaluations: where they are, which files are missing, and what a
result records about them."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlkd_cli.data.files.fingerprints import file_digest
from vlkd_cli.errors import DataError
from vlkd_cli.features.subject import Subject


def find_folder(
    subject: Subject,
    data: str | None,
    suite: str,
    *,
    holds: Sequence[str],
    below: Sequence[str] = (),
) -> Path:
    """The folder of a suite's data.

    Args:
        data: the suite's own key; by default the subject's `data_root`. A relative path that does
            not exist is looked up in that root.
        holds: names of files or folders; a folder that has one of them is the right one.
        below: sub-folders in which the data may lie too.

    Raises:
        DataError: no folder is given, or none holds what is looked for; names the folders that
        were searched.
    """
    if data is None and subject.data_root is None:
        raise DataError(
            f"suite '{suite}': its data is not set. Give `--data ROOT` or the key `data:`; ROOT"
            f" holds {_one_of(holds)}."
        )
    root = Path(data) if data is not None else Path(str(subject.data_root))
    if not root.exists() and data is not None and subject.data_root is not None:
        root = Path(subject.data_root) / data
    for folder in (root, *(root / name for name in below)):
        if any((folder / name).exists() for name in holds):
            return folder
    folders = ", ".join(str(root / name) for name in below)
    looked = f"{root} (also looked in {folders})" if folders else str(root)
    raise DataError(
        f"suite '{suite}': {looked} holds no {_one_of(holds)}. Nothing is downloaded: put the data"
        " there as published."
    )


def missing_files(root: Path, names: Sequence[str]) -> list[str]:
    """Those of the files below `root` that are not there; a folder that lacks all of several is
    named instead of them."""
    missing = [name for name in names if not (root / name).is_file()]
    folders = {name.rpartition("/")[0] for name in names}
    if len(missing) == len(names) > 2 and len(folders) == 1:
        return [f"all {len(names)} files of {folders.pop()}/"]
    return missing


def file_hashes(root: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of files, by their names below `root`."""
    return {name: file_digest(root / name) for name in names}


def library_versions(*libraries: str) -> dict[str, str]:
    """What computed a result: Python and the installed versions of these distributions."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in libraries
    }


def _one_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
