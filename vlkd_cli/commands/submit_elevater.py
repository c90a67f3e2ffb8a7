"""`vlkd submit-elevater`: check a run's ELEVATER predictions, show their scores and write the zip
for EvalAI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import RunsFolder


def submit_elevater(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run, by folder or name, or the folder with its prediction files; by default the"
            " newest run here.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The zip to write; by default all_predictions.zip next to the files.",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Data sets or seeds may be missing; EvalAI then shows no average."
        ),
    ] = False,
    trust_order: Annotated[
        bool,
        typer.Option(
            "--trust-order",
            help="Accept files whose row and class order cannot be compared with the official one.",
        ),
    ] = False,
    registry: Annotated[
        Path | None,
        typer.Option(
            "--registry",
            help="A vision_datasets.json whose data sets count instead of the official 20.",
        ),
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Merge a run's ELEVATER prediction files into a submission, once all of them are right."""
    from vlkd_cli import console
    from vlkd_cli.data.readers.elevater_sets import read_registry
    from vlkd_cli.elevater.submission import prediction_folder, submit
    from vlkd_cli.engine.launching.run_folder import existing_run, latest_run

    if run is None:
        run = latest_run(runs).path
    elif not run.exists() and (runs / run).is_dir():
        run = existing_run(run, runs).path
    sets = None if registry is None else read_registry(registry)
    done = submit(
        prediction_folder(run), output, partial=partial, trust_order=trust_order, sets=sets
    )
    rows = [
        [
            score.dataset,
            score.metric,
            ", ".join(map(str, score.seeds)),
            f"{score.mean:.4f}",
            f"{score.spread:.4f}" if score.seeds[1:] else "",
        ]
        for score in done.scores
    ]
    if done.average is not None:
        rows.append(["average", "", "", f"{done.average:.4f}", ""])
    if rows:
        console.print_table("Local scores", ["data", "metric", "seeds", "score", "spread"], rows)
    if registry is not None:
        console.warn(
            f"checked against {registry}, not against ELEVATER's 20 data sets: EvalAI takes only"
            " those."
        )
    if done.average is None:
        console.warn("no average: it needs every data set, each with its labels.")
    console.say(f"wrote {done.path} from {done.num_files} prediction files")
