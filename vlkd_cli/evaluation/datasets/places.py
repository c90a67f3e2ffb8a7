"""Where a data set that a suite names lies below a data root, and in which of the known layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkd_cli.data.readers.elevater_sets import find_set, known_sets, locate
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.known_sets import TORCHVISION, known_as


def found_by_name(keys: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """The keys of a reader for `{dataset: NAME, split: ...}`.

    Tried in turn below the root: a webdataset copy of CLIP_benchmark (`wds_NAME` or `NAME`),
    ELEVATER's layout, torchvision's folders, a folder of images per class. A class of
    torchvision.datasets is taken by its own name where nothing lies below the root.

    Raises:
        DataError: there is no such data set; says where it was looked for.
    """
    given = dict(keys)
    dataset = str(given.pop("dataset", ""))
    if not dataset:
        raise DataError(
            "data: say 'reader', or 'dataset' with the name of a data set below --data ROOT."
        )
    known = known_as(dataset)
    if root is not None:
        for name in (f"wds_{dataset}", dataset, f"wds_{known}", known):
            if (root / name / "classnames.txt").is_file() or (
                root / name / "dataset_type.txt"
            ).is_file():
                return {"reader": "clip_benchmark", "path": str(root / name), **given}
        elevater = _elevater_name(root, dataset)
        if elevater is not None:
            return {
                "reader": "elevater",
                "root": str(root),
                "dataset": elevater,
                **({"split": "test"} | given),
            }
        if known in TORCHVISION and (root / TORCHVISION[known][1]).exists():
            return {
                "reader": "classification",
                "dataset": TORCHVISION[known][0],
                "root": str(root),
                **({"split": "test"} | given),
            }
        for name in (dataset, known):
            if (root / name).is_dir():
                return {"reader": "classification", "path": str(root / name), **given}
        raise DataError(
            f"data set '{dataset}' is not under '{root}'. `vlkd list-datasets --data {root}` shows"
            " what is, and what is known."
        )
    torchvision = TORCHVISION.get(known, (dataset, ""))[0]
    return {"reader": "classification", "dataset": torchvision, **given}


def _elevater_name(root: Path, dataset: str) -> str | None:
    """ELEVATER's name of a data set, if it lies below the root in that layout."""
    if not root.is_dir():
        raise DataError(f"data root '{root}' is not a folder.")
    try:
        facts = find_set(dataset, known_sets(root))
    except DataError:
        return None
    try:
        locate(root, facts.name)
    except DataError:
        return None
    return facts.name
