"""Find files of right and wrong captions: by name below a data root, in a folder, or alone."""

from __future__ import annotations

from pathlib import Path

from vlkd_cli.data.files.choices import WINOGROUND_FILE
from vlkd_cli.data.readers.choices import choice_files
from vlkd_cli.evaluation.datasets.dataset import Dataset, open_dataset
from vlkd_cli.evaluation.datasets.known_sets import packaged
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource

SYMMETRIC = frozenset(packaged("aro.json")["symmetric"])
"""Relations that ARO's notebook leaves out of its macro accuracy."""


def choice_sets(subject: Subject, data: DataSource) -> list[Dataset]:
    """The data sets that a suite's `data:` key means: one, or those of a folder.

    Raises:
        DataError: see the reader, and where there is no such data.
    """
    folder = _folder(subject.data_root, data)
    files = choice_files(folder) if folder is not None else []
    if folder is not None and not files:
        files = choice_files(folder / "data")  # as the repository of SugarCrepe has them
    if folder is None or len(files) < 2:
        if isinstance(data, str) and subject.data_root is None and Path(data).exists():
            data = {"reader": "choices", "path": data}
        return [open_dataset(subject, data)]
    keys = dict(data) if isinstance(data, dict) else {}
    keys.pop("dataset", None)
    name = keys.pop("name", folder.resolve().name)
    return [
        open_dataset(
            subject,
            {**keys, "reader": "choices", "path": str(file), "name": f"{name}/{file.stem}"},
        )
        for file in files
    ]


def _folder(root: Path | None, data: DataSource) -> Path | None:
    """The folder that is meant, where one is."""
    if data is None:
        folder = root
    elif isinstance(data, str) or "reader" not in data:
        name = data if isinstance(data, str) else str(data.get("dataset", ""))
        below = Path(name) if root is None else root / name
        folder = below if name else None
    else:
        folder = Path(str(data.get("path", ""))).expanduser() if "path" in data else None
    if folder is None or not folder.is_dir() or (folder / WINOGROUND_FILE).is_file():
        return None
    return folder
