"""`vlkd recipes`: the shipped recipes, checking one's own, and the schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipes = typer.Typer(no_args_is_help=True, help="List, show, copy, check and try recipes.")


@recipes.command("list")
def list_recipes() -> None:
    """The recipes that come with vlkd, each with the first line of its header."""
    from vlkd_cli import console
    from vlkd_cli.recipe.shipped import shipped_recipes, summary_of

    console.print_table(
        "",
        ["recipe", "what it shows"],
        [(name, summary_of(path)) for name, path in shipped_recipes().items()],
    )


@recipes.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A name that `vlkd recipes list` shows.")],
) -> None:
    """Print a shipped recipe."""
    from vlkd_cli import console
    from vlkd_cli.recipe.shipped import shipped_recipe

    console.say(shipped_recipe(name).read_text(encoding="utf-8").rstrip("\n"))


@recipes.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A name that `vlkd recipes list` shows.")],
    path: Annotated[
        Path | None,
        typer.Argument(help="The new file, or a folder for it.", show_default="NAME.yaml here"),
    ] = None,
) -> None:
    """Copy a shipped recipe, to change it. A file that is there already is left alone."""
    from vlkd_cli import console
    from vlkd_cli.errors import UserError
    from vlkd_cli.recipe.shipped import shipped_recipe

    source = shipped_recipe(name)
    target = path or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise UserError(f"{target} exists already. Remove it, or name another file.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}. Choose another path.") from error
    console.say(f"{target} written. Change it, then: vlkd train {target}")


@recipes.command("check")
def check_recipes(
    paths: Annotated[
        list[str],
        typer.Argument(help="Recipe files or names of shipped recipes.", metavar="PATH..."),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key first. Repeatable."),
    ] = None,
) -> None:
    """Check recipes without running them: keys, types, addresses, settings without effect. Exit
    code 2 where one has problems."""
    from vlkd_cli import console
    from vlkd_cli.errors import RecipeError
    from vlkd_cli.recipe.load import load_recipe

    failed = []
    for path in paths:
        try:
            load_recipe(path, set_ or [], to_train=1)
        except RecipeError as error:
            failed.append(str(error))
        else:
            console.say(f"{path}: fine")
    if failed:
        raise RecipeError("\n".join(failed))


@recipes.command("smoke")
def smoke_recipes(
    paths: Annotated[
        list[str],
        typer.Argument(help="Recipe files or names of shipped recipes.", metavar="PATH..."),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key first. Repeatable."),
    ] = None,
    no_weights: Annotated[
        bool,
        typer.Option(
            "--no-weights",
            help="Random weights instead of pretrained ones, for machines that lack their files.",
        ),
    ] = False,
) -> None:
    """Try recipes without their data: check, dry run, two training steps on rendered shapes, in a
    temporary folder. Exit code 2 where one fails."""
    from vlkd_cli import console
    from vlkd_cli.engine.launching.smoke import smoke_test

    failed = False
    for path in paths:
        outcome = smoke_test(path, set_ or [], weights=not no_weights)
        failed |= outcome.failed
        (console.error if outcome.failed else console.say)(outcome.text)
    if failed:
        raise typer.Exit(2)


@recipes.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors.

    The first line of a recipe points editors to it: `# yaml-language-server:
        $schema=recipe.schema.json`.
    """
    import json

    from vlkd_cli import console
    from vlkd_cli.recipe.json_schema import recipe_schema

    console.say(json.dumps(recipe_schema(), indent=2))


@recipes.command("reference", hidden=True)
def write_reference(
    output: Annotated[
        Path | None, typer.Option(help="File to write; by default standard output.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for a page per component instead.")
    ] = None,
) -> None:
    """Every section and component with its keys, as Markdown: docs/catalogue.md."""
    from vlkd_cli import console
    from vlkd_cli.errors import UserError
    from vlkd_cli.recipe.reference import catalogue_page
    from vlkd_cli.recipe.reference_pages import component_pages

    if folder is not None:
        if output is not None:
            raise UserError("--output and --folder exclude each other. Give one of them.")
        pages = component_pages({}, lambda tex: f"$$ {tex} $$")
        for name, text in pages.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        console.say(f"{len(pages)} pages written to {folder}.")
        return
    if output is None:
        console.say(catalogue_page().rstrip("\n"))
    else:
        output.write_text(catalogue_page(), encoding="utf-8")
        console.say(f"{output} written.")
