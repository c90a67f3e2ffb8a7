"""`vlkd search [TARGET] INDEX QUERY...`: find images or texts in what `vlkd encode` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import RunsFolder, Trust

INDEXES = (".npy", ".parquet")


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[TARGET] INDEX QUERY...",
            help=(
                "INDEX is a .npy or .parquet file of `vlkd encode`; a QUERY is a text, or the path"
                " of an image or a mesh. TARGET, which encodes the queries, is what encoded the"
                " index unless it is given."
            ),
        ),
    ],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Results of each query.")] = 10,
    tower: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The tower for all queries, or image, text or mesh; by default the one that fits"
            " each.",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a self-contained HTML page of the results."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of tables.")
    ] = False,
    trust: Trust = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Search what was encoded, exactly: a text or an image finds the nearest texts or images."""
    from vlkd_cli.errors import UserError

    position = next((n for n, word in enumerate(words[:2]) if word.endswith(INDEXES)), None)
    if position is None:
        raise UserError(
            "which index? Give a .npy or .parquet file of `vlkd encode` before the queries, not"
            f" {words[0]}."
        )
    queries = words[position + 1 :]
    if not queries:
        raise UserError(f"what is searched in {words[position]}? Give a text or an image after it.")
    from vlkd_cli import console

    console.announce("Loading torch ...")
    from vlkd_cli.engine.search import search as search_index

    search_index(
        target=words[0] if position else None,
        index=Path(words[position]),
        queries=queries,
        k=k,
        tower=tower,
        page=page,
        as_json=json,
        trust=trust,
        runs=runs,
    )
