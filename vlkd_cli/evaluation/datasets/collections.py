"""Which data sets the columns of an evaluation table are: names, collections, and lists of one's
own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.texts import read_text
from vlkd_cli.data.readers.elevater_sets import official_sets
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.evaluation.datasets.known_sets import (
    known_as,
    known_sets,
    packaged,
    sets_on_disk,
)
from vlkd_cli.evaluation.datasets.places import found_by_name, name_of_path
from vlkd_cli.recipe.messages import report
from vlkd_cli.recipe.variables import without_marks
from vlkd_cli.recipe.yaml_file import read_document

EVERYTHING = "all"


class Entry(NamedTuple):
    """A data set of a table."""

    name: str
    keys: dict[str, Any]
    """The `data:` of a suite."""
    is_listed: bool = True
    """Whether the user named this very set; of a collection, what a suite does not take is passed
    over."""
    origin: str = ""
    """File and line of an entry of a list."""


def collections() -> dict[str, list[str]]:
    """The data sets of each collection that vlkd knows by name: ELEVATER's 20, and VTAB, the
    variants of ImageNet and retrieval as CLIP_benchmark groups them."""
    elevater = [known_as(facts.name) for facts in official_sets().values()]
    return {"elevater": elevater, **packaged("collections.json")}


class Group(NamedTuple):
    """Data sets whose mean is a column of a table."""

    name: str
    datasets: tuple[str, ...]
    by_items: bool = False
    """Whether every item counts the same, and not every data set."""


def groups_of(words: Sequence[str]) -> list[Group]:
    """The groups that a table reports means of: each collection that was asked for, VTAB's natural,
    specialized and structured sets, and all items of SugarCrepe together, as its paper has it."""
    found = []
    for word in dict.fromkeys(words):
        parts = packaged("groups.json").get(word, {})
        found += [Group(f"{word}.{name}", tuple(own)) for name, own in parts.items()]
        if word in collections():
            found.append(Group(word, tuple(collections()[word])))
        if word == "sugar_crepe":
            found.append(Group(f"{word}.all_items", tuple(collections()[word]), by_items=True))
    return found


def entries_of(words: Sequence[str], root: Path | None) -> list[Entry]:
    """The data sets that are meant, each once.

    Args:
        words: names of data sets below the root; `all` of them; a collection; `FILE.yaml:NAME`, a
            list of names and of `{reader: ...}` mappings in a file.
        root: the data root.

    Raises:
        UserError: a word means nothing, or `all` is asked for without a root.
    """
    found: dict[str, Entry] = {}
    for word in words:
        for entry in _meant(word, root):
            known = found.setdefault(entry.name, entry)
            if known.keys != entry.keys:
                raise UserError(
                    f"--datasets: two different data sets are called '{entry.name}'. Give one of"
                    " them another `name:`."
                )
            if entry.is_listed:
                found[entry.name] = entry
    if not found:
        raise UserError("--datasets: names no data set.")
    return list(found.values())


def absent(entries: Sequence[Entry], root: Path | None) -> list[Entry]:
    """Those that are looked for by name and not there."""

    def is_absent(entry: Entry) -> bool:
        if "reader" in entry.keys or "readers" in entry.keys:
            return False
        try:
            found_by_name(entry.keys, root)
        except DataError:
            return True
        return False

    return [entry for entry in entries if is_absent(entry)]


def _meant(word: str, root: Path | None) -> Iterator[Entry]:
    file, _, name = word.rpartition(":")
    if file.endswith((".yaml", ".yml")):
        yield from _own_list(Path(file), name)
    elif word == EVERYTHING:
        if root is None:
            raise UserError("--datasets all: needs --data with the folder that holds them.")
        for each in sets_on_disk(root):
            yield Entry(each, {"dataset": each}, is_listed=False)
    elif word in collections():
        for each in collections()[word]:
            yield Entry(each, {"dataset": _copy_of(each, word, root)}, is_listed=False)
    elif word:
        _refuse_unknown(word, root)
        yield Entry(word, {"dataset": word})


def _copy_of(name: str, collection: str, root: Path | None) -> str:
    """A collection's set by the name of the copy that is there: CLIP_benchmark calls VTAB's
    `vtab-NAME`, in spellings of its own (`vtab-flowers`)."""
    folders = sorted(root.iterdir()) if root is not None and root.is_dir() else []
    for folder in folders:
        copy = folder.name.removeprefix("wds_")
        prefix, rest = copy[: len(collection) + 1], copy[len(collection) + 1 :]
        if prefix in (f"{collection}-", f"{collection}_") and known_as(rest) == name:
            return copy
    return name


def _own_list(path: Path, name: str) -> Iterator[Entry]:
    try:
        document = read_document(read_text(path), str(path))
    except DataError as error:
        raise UserError(f"--datasets {error}") from error
    if document.problems:
        problem = report(document.origins, document.problems, str(path)).splitlines()[0]
        raise UserError(f"--datasets {problem}")
    content = without_marks(document.value)
    if isinstance(content, dict) and name in content and not isinstance(content[name], list):
        raise UserError(
            f"--datasets {document.origins.get((name,), path)}: '{name}' is not a list. Write"
            f" `{name}: [cifar10, {{reader: csv, path: val.csv}}]`."
        )
    if not isinstance(content, dict) or name not in content:
        names = list(map(str, content)) if isinstance(content, dict) else []
        raise UserError(
            f"--datasets {path}:{name}: the file has no list '{name}'."
            f"{did_you_mean(name, names)} It has: {', '.join(names) or 'none'}."
        )
    for number, item in enumerate(content[name]):
        origin = document.origins.get((name, number), str(path))
        if isinstance(item, str) and item:
            yield Entry(item, {"dataset": item}, origin=origin)
        elif isinstance(item, dict) and {"reader", "readers", "dataset"} & item.keys():
            yield Entry(_name_of(item, number + 1), item, origin=origin)
        else:
            raise UserError(
                f"--datasets {origin}: entry {number + 1} of '{name}' is neither the name of a data"
                " set nor a mapping with `reader` or `dataset`."
            )


def _name_of(item: Mapping[str, object], number: int) -> str:
    for key in ("name", "dataset", "path", "root", "reader"):
        if isinstance(item.get(key), str):
            return name_of_path(str(item[key])) if key in ("path", "root") else str(item[key])
    return f"data_{number}"


def _refuse_unknown(word: str, root: Path | None) -> None:
    """A name that nobody knows and that is not below the root either."""
    if root is not None:
        try:
            found_by_name({"dataset": word}, root)
        except DataError:
            names = [EVERYTHING, *collections(), *known_sets(), *sets_on_disk(root)]
            if known_as(word) not in names:
                raise UserError(
                    f"--datasets {word}: not below {root}, not a known data set and not a"
                    f" collection.{did_you_mean(word, names)} `vlkd list-datasets --data {root}`"
                    " shows what is there."
                ) from None
