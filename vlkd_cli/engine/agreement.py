"""What every process of a run must have in common: recipe, versions, data and initial weights.

A node with another recipe would train along without a word, or wait in another collective than the
others. So each of these is compared right when it is known, by digest; only where digests differ
are the values themselves exchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import TypeVar

import torch

from vlkd_cli import __version__
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.distributed.heartbeat import node_name
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.recipe.difference import first_difference
from vlkd_cli.towers.tower import Tower

AnyReader = TypeVar("AnyReader", bound=Reader | StreamReader)

OWN_KEYS = frozenset({"path", "image_root", "cache_dir"})
"""Keys whose values may differ between nodes: the locations of data. The data themselves are
compared."""


def refuse_other_recipes(recipe: str, device: torch.device) -> None:
    """Compare recipe and versions over all processes.

    Args:
        recipe: as JSON.

    Raises:
        UserError: the first key in which two processes differ, with both nodes and values.
    """
    plain = json.loads(recipe)
    plain.pop("reports", None)
    _refuse_different(
        {
            "recipe": _without_paths(plain),
            "vlkd": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "device": device.type,
        },
        "Start every process with the same recipe, --set values and versions.",
    )


def open_everywhere(open_data: Callable[[], AnyReader]) -> AnyReader:
    """Open the training data on every process, and compare them.

    Raises:
        UserError: opening failed on this process or on another, which is named; or the data differ.
    """
    if runtime.world_size() == 1:
        return open_data()
    reader, problem = None, None
    try:
        reader = open_data()
    except UserError as error:
        problem = error
    problems = collectives.gather_objects(None if problem is None else (node_name(), str(problem)))
    if problem is not None:
        raise problem
    for found in problems:
        if found is not None:
            raise DataError(f"{found[0]}: {found[1]}")
    assert reader is not None
    facts = (
        {"samples": len(reader), "fingerprint": reader.fingerprint()}
        if isinstance(reader, Reader)
        else {}
    )
    _refuse_different({"data": facts}, "Give every node the same data.")
    return reader


def refuse_other_weights(towers: Iterable[Tower]) -> None:
    """Compare the initial weights of every tower over all processes.

    Raises:
        UserError: a tower whose weights differ, with both nodes.
    """
    if runtime.world_size() == 1:
        return
    _refuse_different(
        {"towers": {tower.name: tower.digest() for tower in towers}},
        "Give every node the same weight files and library versions.",
    )


def _refuse_different(values: Mapping[str, object], remedy: str) -> None:
    if runtime.world_size() == 1:
        return
    own = json.dumps(values, sort_keys=True)
    digest = hashlib.sha256(own.encode("utf-8", "surrogatepass")).hexdigest()
    digests = collectives.gather_objects(digest)
    if len(set(digests)) == 1:
        return
    everyone = collectives.gather_objects((node_name(), own))
    other = next(rank for rank, found in enumerate(digests) if found != digests[0])
    (first_node, first), (other_node, second) = everyone[0], everyone[other]
    difference = first_difference(json.loads(first), json.loads(second))
    assert difference is not None
    key, value, other_value = difference
    raise UserError(
        f"{other_node} has {key} {_brief(other_value)}, {first_node} has {_brief(value)}. {remedy}"
    )


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_paths(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items() if key not in OWN_KEYS}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return value
