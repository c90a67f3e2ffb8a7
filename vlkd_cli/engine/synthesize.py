"""`vlkd synthesize`: training data out of queries and passages."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vlkd_cli import console
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.launching.launch import quieten_libraries, run_workers
from vlkd_cli.engine.launching.start import choose_placement
from vlkd_cli.engine.launching.start_evaluation import find_target
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.load import recipe_from_json
from vlkd_cli.recipe.snapshot import recipe_to_json
from vlkd_cli.synthesis.parts import PARTS
from vlkd_cli.synthesis.run import Synthesis, described
from vlkd_cli.synthesis.run import synthesize as write_relations


@dataclass(frozen=True)
class SynthesisJob:
    """Arguments of a worker; plain values only.

    Args:
        recipe: as JSON.
        output: the folder that is written.
        folder: of a run, where its tokenizer is; None for a recipe.
        checkpoint: weights of what was trained; None: towers as they are built.
    """

    recipe: str
    output: str
    folder: str | None = None
    checkpoint: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"


def prepared(
    target: str, output: str | Path, overrides: Sequence[str], runs: Path, trust: bool
) -> SynthesisJob:
    """The checked recipe, and where its towers' weights are.

    Raises:
        UserError: something does not fit.
    """
    quieten_libraries()
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise UserError(f"OUT {path}: is a file. Name a folder.")
    recipe, folder, checkpoint = find_target(target, overrides, runs, trust)
    if recipe.synthesis is None:
        raise RecipeError(
            f"{target}: no section `synthesis`, which defines the relations. Add it; see"
            " `vlkd show section synthesis`."
        )
    return SynthesisJob(
        recipe=recipe_to_json(recipe),
        output=str(path),
        folder=None if checkpoint is None else str(folder.path),
        checkpoint=None if checkpoint is None else str(checkpoint),
    )


def start_synthesis(job: SynthesisJob, *, gpus: int | None, cpu_workers: int | None) -> int:
    """Run in one process or several; 0, or the number of the signal that stopped it."""
    placement = choose_placement(gpus, cpu_workers)
    job = replace(job, device="cuda" if placement.device == "cuda" else "cpu")
    return run_workers(run_synthesis, job, placement, Path(job.output) / PARTS / "logs")


def run_synthesis(job: SynthesisJob) -> int:
    """What every worker does; 0, or the number of the signal that stopped it."""
    with Interruption().watched() as interruption:
        try:
            with interruption.dropping():
                found = synthesized(job)
        except Interrupted:
            if runtime.is_main():
                console.note("Stopped. Run the same command to resume.")
            return interruption.signal_number or signal.SIGINT
    if runtime.is_main():
        _report(found)
    return 0


def synthesized(job: SynthesisJob) -> Synthesis:
    """The relations of a job, in this process.

    Raises:
        UserError: something does not fit.
    """
    recipe = recipe_from_json(job.recipe)
    assert recipe.synthesis is not None
    device = runtime.pick_device(job.device)
    checkpoint = None if job.checkpoint is None else Checkpoint.load(Path(job.checkpoint))
    folder = None if job.folder is None else Path(job.folder)
    towers = load_towers(recipe, folder, checkpoint)
    for tower in towers.values():
        tower.to(device).eval()
    subject = subject_of(recipe, towers, device)
    subject.cache = cache_folder(recipe.train.cache_dir)
    try:
        return write_relations(recipe.synthesis, subject, Path(job.output))
    except UserError as error:
        # A reader speaks of the keys of `data:`.
        message = re.sub(r"(?<![\w./])data\.(?=\w)", "synthesis.data.", str(error))
        error.args = (message,)
        raise


def _report(found: Synthesis) -> None:
    """Print what there is, and how to train on it."""
    page = found.page
    counts, data = page["counts"], page["data"]
    share = page["share_of_negative_margins"]
    console.say(
        f"Relations: {found.relations} ({counts['relations']:,} of {counts['queries']:,} queries;"
        f" {share:.1%} with a negative margin)"
    )
    if shortage := described(counts):
        console.warn(f"of {data['queries']:,} queries {shortage}.")
    title = "" if data["title"] else ", title: false"
    console.say("Train on them with:")
    console.say(
        f"data: {{reader: passages, path: {data['path']}{title}, relations: {found.relations}}}"
    )
    console.say(
        "distillers: [{name: margin_mse, student: text, teacher: [text@positive, text@negative],"
        " similarity: cosine, scale: 10}]"
    )


def summary(found: Synthesis) -> dict[str, object]:
    """What `vlkd_cli.synthesize` returns."""
    return {"relations": str(found.relations), **found.page}
