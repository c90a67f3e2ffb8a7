"""Render a report and write it: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlkd_cli.errors import UserError
from vlkd_cli.reports.records import read_run
from vlkd_cli.whole_file import whole_file

FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of a run, or the comparison of several.

    Args:
        folders: run folders; the first of several is the baseline.
        output: the file; by default `report.html` in the run, or `comparison.html` next to the
            first of several.

    Returns:
        Where the page was written.

    Raises:
        UserError: a folder is not a run, the runs share no metric, or the file cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    if len(runs) == 1:
        from vlkd_cli.reports.html.run_page import context_of_run

        path = output or runs[0].path / FILE
        template, context = "run.html", context_of_run(runs[0])
    else:
        from vlkd_cli.reports.html.comparison_page import context_of_comparison

        path = output or runs[0].path.parent / "comparison.html"
        template, context = "comparison.html", context_of_comparison(runs)
    write_page(path, template, context, "-o")
    return path


def write_page(path: Path, template: str, context: dict[str, object], option: str) -> None:
    """Render a template into a file, which is replaced at once or not at all.

    Args:
        option: what chooses the file on the command line.

    Raises:
        UserError: the file cannot be written.
    """
    if not path.name:
        raise UserError(f"{option} '{path}': it is a folder. Name a file.")
    page = _render(template, context)
    try:
        with whole_file(path) as partial:
            partial.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"{path}: the report cannot be written: {error.strerror}. Choose another file with"
            f" {option}."
        ) from error


def _render(template: str, context: dict[str, object]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Charts are made of escaped parts; style sheet and script are ours.
    environment.filters["svg"] = Markup
    environment.globals["include_raw"] = lambda name: Markup(
        (TEMPLATES / name).read_text(encoding="utf-8")
    )
    return environment.get_template(template).render(context)
