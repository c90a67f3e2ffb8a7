"""`vlkd search`: what in a file of vectors is nearest to some texts, images or meshes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean_path
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.modality import MODALITIES, modality_of_file
from vlkd_cli.engine.encoder import Encoder, subject_for
from vlkd_cli.engine.given import GIVEN
from vlkd_cli.engine.items import Input, Items, open_items
from vlkd_cli.engine.launching.launch import quieten_libraries
from vlkd_cli.engine.target import open_target
from vlkd_cli.engine.vectors import Page, page_of, read_vectors
from vlkd_cli.errors import DataError, RecipeError, UserError
from vlkd_cli.numerics.topk import TopK
from vlkd_cli.recipe.load import TRUST_OPTION
from vlkd_cli.recipe.messages import report
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.trust import check_foreign
from vlkd_cli.towers.outputs import HEAD

if TYPE_CHECKING:
    from PIL import Image

ROWS_AT_ONCE = 16384
LONGEST_TEXT = 300


class Query(NamedTuple):
    """A query and the tower that encodes it."""

    text: str
    tower: str
    is_file: bool


class Found(NamedTuple):
    """A row of the index: its rank from 1, its score, its id, its position, and its text where it
    is one."""

    rank: int
    score: float
    id: str
    position: int
    text: str | None


def search(
    *,
    target: str | None,
    index: Path,
    queries: Sequence[str],
    k: int = 10,
    tower: str | None = None,
    page: Path | None = None,
    as_json: bool = False,
    trust: bool = False,
    runs: Path = Path("runs"),
) -> None:
    """Print the `k` nearest rows of an index to each query, and write a page of them.

    Rows are compared by inner product, which is the cosine where the index was normalized; the
    search is exact.

    Args:
        target: what encodes the queries; None: what encoded the index.
        tower: encodes all queries, by name or modality; None: the one that fits each.
        page: an HTML file.

    Raises:
        UserError: the index is damaged or of another model, or no tower fits a query.
    """
    quieten_libraries()
    rows, about = read_vectors(index)
    if about.output != HEAD:
        raise DataError(
            f"INDEX {index} holds the output '{about.output}', and queries are encoded as 'head'."
            " Write it without --output."
        )
    opened = open_target(
        (about.target or None) if target is None else target,
        about.overrides if target is None else (),
        runs=runs,
        trust=trust,
        foreign=page_of(index) if target is None else None,
    )
    encoder = Encoder(subject_for(opened))
    _refuse_another_model(encoder, about, index, opened.described, target)
    asked = [_query(text, encoder, about, tower) for text in queries]
    vectors = torch.from_numpy(np.concatenate([_vector(encoder, about, each) for each in asked]))
    scores, positions = nearest(rows, vectors, k)
    items = _items(about, None if trust else page_of(index))
    found = [
        [
            Found(rank, score, about.ids[row], row, _text(items, about, row))
            for rank, (score, row) in enumerate(zip(own, found_rows, strict=True), start=1)
        ]
        for own, found_rows in zip(scores.tolist(), positions.tolist(), strict=True)
    ]
    if as_json:
        console.say(json.dumps([_as_json(*each) for each in zip(asked, found, strict=True)]))
    else:
        for each, answers in zip(asked, found, strict=True):
            _print(each, answers)
    if page is not None:
        from vlkd_cli.reports.html.search_page import write_search_page

        write_search_page(
            page,
            title=f"Search in {index.name}",
            subtitle=f"{opened.described}; {len(rows):,} {FACTS[about.modality].plural}",
            scores="cosine" if about.normalized else "inner product",
            answers=[
                (each.text, _picture_of(encoder, each), _shown(items, about, own))
                for each, own in zip(asked, found, strict=True)
            ],
        )
        if not as_json:
            console.say(f"Page: {page}")


def nearest(rows: np.ndarray, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and positions `[Q, min(k, N)]` of the rows of largest inner product, best first; of
    equal ones the first row is ahead.

    Raises:
        DataError: a row is not finite, so that it has no place in the order.
    """
    best = TopK(queries, max(min(k, len(rows)), 1))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = np.array(rows[start : start + ROWS_AT_ONCE], dtype=np.float32)
        if not (finite := np.isfinite(block).all(axis=1)).all():
            row = start + int(np.argmin(finite))
            raise DataError(f"row {row} of the index is not finite. Encode its input again.")
        # Of equal scores TopK puts the larger key first.
        keys = len(rows) - 1 - torch.arange(start, start + len(block))
        best.add(torch.from_numpy(block), keys)
    scores, last = best.result()
    return scores, len(rows) - 1 - last


def _refuse_another_model(
    encoder: Encoder, about: Page, index: Path, described: str, target: str | None
) -> None:
    same = about.tower in encoder.towers and encoder[about.tower].digest == about.digest
    if not same:
        raise DataError(
            f"INDEX {index} was encoded by tower '{about.tower}' of other weights than those of"
            f" {described}. Write it again: {_renewal(about, index, target, encoder.towers)}"
        )


def _renewal(about: Page, index: Path, target: str | None, towers: Sequence[str]) -> str:
    """The command that writes an index again, as it was written.

    Args:
        target: of other weights; None: what encoded the index.
        towers: of the target.
    """
    words = [target or about.target, about.input["path"], str(index)]
    if len(towers) > 1 and about.tower in towers:
        words += ["--tower", about.tower]
    if (column := about.input["column"]) is not None:
        words += ["--column", column]
    for key, value in about.input["reader"].items():
        words += ["--reader", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    for change in about.overrides if target is None else ():
        words += ["--set", change]
    options = [
        *(() if about.normalized else ("--raw",)),
        *(() if about.dtype == "float32" else ("--dtype", about.dtype)),
    ]
    return shlex.join(["vlkd", "encode", *filter(None, words), *options])


def _query(text: str, encoder: Encoder, about: Page, tower: str | None) -> Query:
    """If `text` is the name of a file, the query is an image or a mesh, by the name's ending;
    otherwise a text. An explicit tower decides first."""
    if not text.strip():
        raise UserError("a query is empty. Give a text, or the path of an image or a mesh.")
    is_file = os.path.isfile(text)
    if tower is not None:
        chosen = encoder[tower]
        takes_files = FACTS[chosen.modality].has_views
        if takes_files and not is_file:
            raise UserError(
                f"query {text}: no such file, and tower '{chosen.name}' takes"
                f" files.{did_you_mean_path(text)}"
            )
        return Query(text, chosen.name, takes_files)
    by_name = modality_of_file(text)
    if not is_file and (by_name is not None or _is_path(text)):
        missing = "it is a folder" if os.path.isdir(text) else "no such file"
        raise UserError(
            f"query {text}: {missing}.{did_you_mean_path(text)} For a text of these words, add"
            " --tower."
        )
    wanted = [
        name
        for name in encoder.towers
        if FACTS[encoder[name].modality].has_views == is_file
        and by_name in (None, encoder[name].modality)
    ]
    if about.tower in wanted:
        return Query(text, about.tower, is_file)
    if not wanted:
        holds = f" of {FACTS[by_name].plural}" if by_name is not None else ""
        kind = f"a file{holds}" if is_file else "a text"
        raise UserError(
            f"query {text}: it is {kind}, and no tower of the index's model takes one. Towers:"
            f" {', '.join(encoder.towers)}."
        )
    return Query(text, encoder[encoder[wanted[0]].modality].name, is_file)


def _is_path(text: str) -> bool:
    """Whether a text without a file is a path rather than words: a folder, or below one."""
    return os.path.isdir(text) or (os.sep in text and os.path.isdir(os.path.dirname(text)))


def _vector(encoder: Encoder, about: Page, query: Query) -> NDArray[np.float32]:
    chosen = encoder[query.tower]
    if chosen.width != about.width:
        raise UserError(
            f"query {query.text}: tower '{query.tower}' gives {chosen.width} values and the index"
            f" has {about.width}, so they cannot be compared. Choose another --tower."
        )
    return chosen.encode(query.text, normalize=about.normalized)


def _items(about: Page, foreign: Path | None) -> Items | None:
    """The items of the index's input, where it is still what was encoded.

    Args:
        foreign: the index's page, where it is not trusted: its input is then not to run code.
    """
    if about.texts is not None:
        return Items(about.ids, about.fingerprint, texts=about.texts)
    try:
        if foreign is not None and (problems := check_foreign(about.input, TRUST_OPTION)):
            raise RecipeError(report({}, problems[:1], f"{foreign}: input"))
        items = open_items(Input(**about.input), about.modality)
    except UserError as error:
        console.warn(f"what was encoded cannot be shown: {error}")
        return None
    is_same = items.fingerprint == about.fingerprint
    if not is_same or len(items.ids) != len(about.ids) + len(about.skipped):
        console.warn(
            f"{about.input['path']} has changed since it was encoded, so only ids are shown. Encode"
            " it again."
        )
        return None
    return items


def _text(items: Items | None, about: Page, row: int) -> str | None:
    return None if items is None or items.texts is None else items.texts[row]


def _shown(
    items: Items | None, about: Page, found: Sequence[Found]
) -> list[tuple[Found, bytes | str | Image.Image | None]]:
    """The rows with their pictures, where they are pictures."""
    if items is None or items.reader is None:
        return [(each, None) for each in found]
    rows = np.setdiff1d(np.arange(len(items.ids)), about.skipped)
    picture = MODALITIES[about.modality].picture
    return [(each, picture(items.reader, int(rows[each.position]))) for each in found]


def _picture_of(encoder: Encoder, query: Query) -> bytes | str | Image.Image | None:
    """What shows a query that is a file."""
    modality = encoder[query.tower].modality
    if not query.is_file or modality not in GIVEN:
        return None
    try:
        return MODALITIES[modality].picture(GIVEN[modality]([query.text], query.tower), 0)
    except Broken:
        return None


def _print(query: Query, found: Sequence[Found]) -> None:
    columns = ["rank", "score", "id"]
    rows: list[list[object]] = [[each.rank, f"{each.score:.4f}", each.id] for each in found]
    if any(each.text is not None for each in found):
        columns.append("text")
        for row, each in zip(rows, found, strict=True):
            row.append(" ".join((each.text or "").split())[:LONGEST_TEXT])
    console.print_table(query.text, columns, rows)


def _as_json(query: Query, found: Sequence[Found]) -> dict[str, object]:
    answers = [
        {"rank": each.rank, "score": each.score, "id": each.id}
        | ({} if each.text is None else {"text": each.text})
        for each in found
    ]
    return {"query": os.fspath(query.text), "tower": query.tower, "results": answers}
