"""`vlkd show [KIND] NAME`: what a component does and which keys it takes."""

from __future__ import annotations

from typing import Annotated

import typer


def show(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="distiller, builder, reader, suite, ..., or a name alone; without it, the kinds.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name, or a third party's module:Class; without it, the names.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """What a component does, and its recipe keys with their types and defaults."""
    from vlkd_cli import console
    from vlkd_cli.recipe.reference import about, kind_of, kinds, names_of

    if kind is None:
        console.print_table(
            "", ["kind", "names"], [(kind, ", ".join(names_of(kind))) for kind in kinds()]
        )
        return
    if name is None and kind not in kinds():
        kind, name = kind_of(kind), kind
    if name is None:
        for known in names_of(kind):
            console.say(known)
        return
    if kind == "model":
        from vlkd_cli.builders.by_task import refuse_unknown_model

        refuse_unknown_model(name)
    page = about(kind, name)
    console.say(f"{kind} {name}")
    console.say("")
    console.say(page.text)
    if page.formula:
        console.say("")
        console.say(f"formula (TeX): {page.formula}")
    if page.facts:
        console.say("")
        for fact, value in page.facts:
            console.say(f"{fact}: {value}")
    console.say("")
    if page.keys:
        console.print_table("", ["key", "type", "default", "meaning"], page.keys)
    else:
        console.say("Takes no keys.")
