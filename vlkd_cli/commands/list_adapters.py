"""`vlkd list-adapters`: the parameter-efficient methods for text towers, and what they cost on an
encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer


def list_adapters(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Hub id, folder or package:NAME of the encoder; BERT base without it.",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Methods with paper, recipe keys, trained parameters and the encoders they go with."""
    import json

    from vlkd_cli import console
    from vlkd_cli.builders.adapters.listing import method_rows
    from vlkd_cli.recipe.adapters import ENCODERS
    from vlkd_cli.recipe.params import signature_of

    encoder, rows = method_rows(model)
    keys = {row.name: signature_of("adapter", row.name).key_names() for row in rows}
    if json_:
        console.say(
            json.dumps(
                [{**row._asdict(), "keys": keys[row.name], "model": encoder} for row in rows],
                indent=2,
            )
        )
        return
    console.print_table(
        f"adapter: {{name: ...}} on {encoder}, at the defaults",
        ["name", "form", "trained", "share", "merges", "encoders", "paper", "keys"],
        [
            (
                row.name,
                row.form,
                "refused" if row.trained is None else f"{row.trained:,}",
                None if row.share is None else f"{row.share:.2%}",
                "yes" if row.merges else "no",
                _shortly(row.encoders, ENCODERS),
                row.paper.removeprefix("arXiv:"),
                ", ".join(keys[row.name]),
            )
            for row in rows
        ],
    )
    console.say(f"all: {', '.join(ENCODERS)}; any: these and others that transformers loads.")
    for row in rows:
        if row.refused is not None:
            console.say(
                f"{row.name}{f' ({row.form})' if row.form else ''}:"
                f" {row.refused.removeprefix('adapter.name: ')}"
            )


def _shortly(fitting: Sequence[str], known: Sequence[str]) -> str:
    missing = [name for name in known if name not in fitting]
    return (
        "any"
        if tuple(fitting) == ("any",)
        else "all but " + ", ".join(missing)
        if missing
        else "all"
    )
