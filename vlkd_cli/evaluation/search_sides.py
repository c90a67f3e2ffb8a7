"""The two sides of a search: what is embedded by which tower, and the exact search between them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.passage_search import merge
from vlkd_cli.features.encode import Point, embed_samples, embed_texts, require_equal_widths
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.topk import TopK
from vlkd_cli.recipe.address import MAIN_VIEW, parse_address
from vlkd_cli.recipe.modality import FACTS, LEADING, PAIR
from vlkd_cli.towers.tower import Tower

ROWS_AT_ONCE = 16384


class SideAddress(NamedTuple):
    """A tower's output, of a text by name."""

    tower: str
    point: Point = "head"
    text: str = MAIN_VIEW

    def __str__(self) -> str:
        output = "" if self.point == "head" else ".backbone"
        return f"{self.tower}{output}" + ("" if self.text == MAIN_VIEW else f"@{self.text}")


class Side(NamedTuple):
    """Items of one side.

    Args:
        ids: what results call them.
        owner: the sample of each, `[N]`.
        texts: None where the items are samples.
    """

    address: SideAddress
    tower: Tower
    reader: Reader
    ids: list[str]
    owner: NDArray[np.int64]
    texts: list[str] | None

    def names(self) -> list[str]:
        """The ids; the texts of a sample that has several are numbered."""
        first = np.searchsorted(self.owner, self.owner, side="left")
        several = np.bincount(self.owner, minlength=1)[self.owner] > 1
        return [
            f"{name}#{n - start + 1}" if is_one_of else name
            for n, (name, start, is_one_of) in enumerate(
                zip(self.ids, first.tolist(), several.tolist(), strict=True)
            )
        ]


def side_addresses(
    subject: Subject, query: str | None, index: str | None
) -> tuple[SideAddress, SideAddress]:
    """The addresses of the keys; by default the only tower on both sides, else texts that
    find images, texts that find meshes, or images that find meshes.

    Raises:
        RecipeError: a key is not an address of a tower that is there, or there is no default.
    """
    usual = _usual(subject)
    found = []
    for key, text, default in (("query", query, usual[0]), ("index", index, usual[1])):
        if text is None and default is None:
            raise RecipeError(
                f"suite 'search': which tower? Set {key}. Towers: {', '.join(_names(subject))}."
            )
        found.append(_address(subject, key, text if text is not None else str(default)))
    return found[0], found[1]


def open_side(
    subject: Subject, address: SideAddress, reader: Reader, prompt: str, key: str
) -> Side:
    """The items of an address.

    Raises:
        RecipeError: a prompt or a named text has no effect there.
        DataError: a sample has no text, or the text has no such name.
    """
    tower = _named(subject, address.tower)
    if FACTS[tower.modality].has_views:
        for name, given in ((key, prompt), (f"@{address.text}", address.text != MAIN_VIEW)):
            if given:
                raise RecipeError(
                    f"suite 'search': {name} has no effect on tower '{address.tower}', which reads"
                    f" {FACTS[tower.modality].plural}. Leave it out."
                )
        ids = [reader.id(n) for n in range(len(reader))]
        return Side(address, tower, reader, ids, np.arange(len(reader)), None)
    if address.text not in (MAIN_VIEW, *reader.text_names):
        known = [MAIN_VIEW, *reader.text_names]
        raise DataError(
            f"suite 'search': the data has no text '{address.text}'."
            f"{did_you_mean(address.text, known)} It has: {', '.join(known)}."
        )
    texts: list[str] = []
    owner: list[int] = []
    for n in range(len(reader)):
        own = _texts_of(reader, n, address.text)
        texts += [prompt + text for text in own]
        owner += [n] * len(own)
    ids = [reader.id(n) for n in owner]
    return Side(address, tower, reader, ids, np.array(owner, dtype=np.int64), texts)


def search_rows(
    subject: Subject,
    queries: Side,
    index: Side,
    depth: int,
    similarity: Literal["cosine", "dot"],
) -> tuple[Tensor, NDArray[np.int64]]:
    """Scores and positions `[Q, min(depth, N)]` in the index, by score, then id as text, then
    position, descending; the same on every rank."""
    asked, rows = embed_side(subject, queries), embed_side(subject, index)
    require_equal_widths(rows.shape[1], asked.shape[1], "search")
    # The rank of an item's id among all of them breaks ties, and names it in the search.
    order = np.argsort(np.array(index.ids, dtype=object), kind="stable")
    keys = np.empty(len(order), dtype=np.int64)
    keys[order] = np.arange(len(order))
    best = TopK(asked.to(subject.device), depth, cosine=similarity == "cosine")
    starts = range(0, len(rows), ROWS_AT_ONCE)
    for start in list(starts)[rank() :: world_size()]:
        block = rows[start : start + ROWS_AT_ONCE]
        best.add(block, torch.from_numpy(keys[start : start + len(block)]))
    scores, found = merge(best, depth, len(rows))
    positions: NDArray[np.int64] = order[found]
    return scores, positions


def embed_side(subject: Subject, side: Side) -> Tensor:
    """Features of the items, `[N, D]`, un-normalized."""
    own = subject.with_tower(side.tower)
    if side.texts is not None:
        return embed_texts(own, side.texts, point=side.address.point)
    return embed_samples(own, side.tower.modality, side.reader, point=side.address.point)


def _texts_of(reader: Reader, index: int, name: str) -> list[str]:
    try:
        first, stop = reader.text_span(index, name)
        own = [text for text in reader.captions(index)[first:stop] if text.strip()]
    except Broken as error:
        raise DataError(
            f"{reader.name(index)}: {error}. Repair it or take it out of the data."
        ) from None
    if not own:
        raise DataError(
            f"{reader.name(index)}: has no text '{name}'; search needs one of every sample. Leave"
            " it out or give it one."
        )
    return own


def _names(subject: Subject) -> list[str]:
    """Names of the towers; those that a suite of Python's was given have their own."""
    given = [subject.tower(modality) for modality in FACTS]
    return list(subject.towers) or [tower.name for tower in given if tower is not None]


def _named(subject: Subject, name: str) -> Tower:
    if name in subject.towers:
        return subject.towers[name]
    return next(
        tower
        for modality in FACTS
        if (tower := subject.tower(modality)) is not None and tower.name == name
    )


def _usual(subject: Subject) -> tuple[str | None, str | None]:
    towers = [tower for modality in FACTS if (tower := subject.tower(modality)) is not None]
    if len(towers) == 1:
        name = _name_of(subject, towers[0])
        return name, name
    image, text = (subject.tower(modality) for modality in PAIR)
    asking = text if text is not None else image
    searched = subject.tower(LEADING) if text is None or image is None else image
    if asking is None or searched is None:
        return None, None
    return _name_of(subject, asking), _name_of(subject, searched)


def _name_of(subject: Subject, tower: Tower) -> str:
    return next((name for name, own in subject.towers.items() if own is tower), tower.name)


def _address(subject: Subject, key: str, text: str) -> SideAddress:
    try:
        written = parse_address(text)
    except ValueError as error:
        raise RecipeError(f"suite 'search': {key}: {error}.") from None
    names = _names(subject)
    if written.tower not in names:
        raise RecipeError(
            f"suite 'search': {key}: no tower '{written.tower}'."
            f"{did_you_mean(written.tower, names)} Towers: {', '.join(names)}."
        )
    if written.output not in ("head", "backbone") or written.first is not None:
        raise RecipeError(
            f"suite 'search': {key}: '{text}' is not tower, tower.backbone or tower@TEXT."
        )
    point: Point = "backbone" if written.output == "backbone" else "head"
    return SideAddress(written.tower, point, written.input)
