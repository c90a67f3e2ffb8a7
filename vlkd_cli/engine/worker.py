"""One training process, from its job to the lines that it prints at the end. What `vlkd train` runs
on every rank."""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vlkd_cli import console
from vlkd_cli.checkpoint import Checkpoint, resolve
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.agreement import refuse_other_recipes
from vlkd_cli.engine.build import Training, build_training
from vlkd_cli.engine.build_towers import made_files
from vlkd_cli.engine.dry_run import dry_run
from vlkd_cli.engine.failures import explained
from vlkd_cli.engine.launching.host_memory import keep_freed_memory
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.launching.run_folder import RunFolder
from vlkd_cli.engine.parallel import wrap_for_this_group
from vlkd_cli.engine.periodic import Evaluations, Saves
from vlkd_cli.engine.regroup import changes_of_group, on_this_group
from vlkd_cli.engine.run import Run
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.address import modality_of
from vlkd_cli.recipe.evaluation_data import default_data
from vlkd_cli.recipe.load import recipe_from_json
from vlkd_cli.recipe.messages import Path as KeyPath
from vlkd_cli.recipe.messages import located
from vlkd_cli.recipe.modality import is_named
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.reports.open import Sinks
from vlkd_cli.reports.outcome import outcome_line
from vlkd_cli.reports.records import read_run
from vlkd_cli.reports.state import StateFile


@dataclass(frozen=True)
class Job:
    """What a worker is given; plain values only, since it crosses a process boundary.

    Args:
        recipe: the recipe as JSON.
        run: the run folder, which exists.
        device: "auto", "cuda" or "cpu".
        resume: continue from the run's last checkpoint.
        dry_run: build everything, take one step, report sizes, write no checkpoint.
        memory: with it, bytes of a GPU for which the largest batch is looked for.
        quiet: print results and errors only.
        origins: `file:line` of the recipe's keys.
        url: where the run folder is copied to; None: nowhere.
        features: folder of cached features; by default that of the recipe's `train.cache_dir`.
    """

    recipe: str
    run: str
    device: str = "auto"
    resume: bool = False
    dry_run: bool = False
    memory: int | None = None
    quiet: bool = False
    origins: Mapping[KeyPath, str] = field(default_factory=dict)
    features: str | None = None
    url: str | None = None


def train(job: Job) -> int:
    """Train, evaluate and save by the recipe, on this rank of the process group.

    Returns:
        0 when the run is complete, else the number of the signal that stopped it after a save.

    Raises:
        UserError: what the user can fix; the last checkpoint stays on disk.
    """
    device = runtime.pick_device(job.device)
    if device.type == "cpu":
        keep_freed_memory()
    with Interruption().watched() as interruption:
        try:
            return _train(job, device, interruption)
        except Interrupted:
            console.say("Stopped before the first step; there was nothing to save.")
            return interruption.signal_number or signal.SIGINT
        except RecipeError as error:
            raise RecipeError(located(str(error), job.origins)) from error
        except Exception as error:
            known = explained(error, job.recipe)
            if known is None:
                raise
            raise known from error


def _train(job: Job, device: torch.device, interruption: Interruption) -> int:
    # Before any other collective: another recipe is another order of collectives.
    refuse_other_recipes(job.recipe, device)
    recipe, folder = recipe_from_json(job.recipe), RunFolder(Path(job.run))
    with interruption.dropping():
        resumed = Checkpoint.load(resolve(folder.path, "last")) if job.resume else None
        if resumed is not None:
            recipe = on_this_group(recipe, resumed)
        training = build_training(
            recipe,
            device,
            run_folder=folder.path,
            resumed=resumed,
            quiet=job.quiet,
            origins=job.origins,
            features=None if job.features is None else Path(job.features),
        )
        trainer = _trainer(training)
        evaluations = Evaluations(
            recipe,
            training.evaluated_towers(),
            folder,
            device,
            training.steps_per_epoch,
            training.total_steps,
        )
        if job.dry_run:
            dry_run(training, trainer, job.memory)
            return 0
        if runtime.is_main():
            folder.note_skipped(training.loader.lost, runtime.rank())
    if resumed is not None:
        trainer.restore(resumed)
        # A value of another result, or one whose checkpoint is gone, does not count against later
        # ones.
        if recipe_from_json(resumed.recipe).train.best == recipe.train.best:
            evaluations.watch.waited = resumed.waited
            if (folder.checkpoints / "best.pt").exists():
                evaluations.watch.best = resumed.best
        _say(job, f"Continuing {folder.path} at step {resumed.step} of {trainer.total_steps}.")
        for line in changes_of_group(training, resumed):
            _say(job, line)
    if resumed is None:
        _say_duplicates(job, training)
    begin, start = time.perf_counter(), trainer.step_count
    with _opened(job, training, trainer, evaluations, resumed, interruption) as run:
        finished = _fit(run, resumed)
    if not finished:
        _say(
            job,
            f"Stopped at step {trainer.step_count} of {training.total_steps}; saved in"
            f" {folder.path}. Continue with --resume.",
        )
        return interruption.signal_number or signal.SIGTERM
    if runtime.is_main():
        evaluations.print_last()
        if unread := folder.skipped_summary():
            console.warn(unread)
    steps = trainer.step_count - start
    if run.ends_early:
        waited = evaluations.watch.waited
        _say(
            job,
            f"stopped early at step {trainer.step_count:,} of {trainer.total_steps:,}: no"
            f" improvement in {waited} evaluation{'s' if waited > 1 else ''}"
            + ("" if steps else ". Raise train.patience to continue."),
        )
    _say_finished(job, recipe, trainer, time.perf_counter() - begin, steps)
    _refuse_diverged(trainer, steps)
    return 0


@contextlib.contextmanager
def _opened(
    job: Job,
    training: Training,
    trainer: Trainer,
    evaluations: Evaluations,
    resumed: Checkpoint | None,
    interruption: Interruption,
) -> Iterator[Run]:
    """The run with everything that it writes to, which is closed at the end."""
    folder, recipe, start = RunFolder(Path(job.run)), training.recipe, trainer.step_count
    with contextlib.ExitStack() as stack:
        stack.callback(training.loader.close)
        stack.callback(training.episode_loader.close)
        sinks, state = None, None
        if runtime.is_main():
            resume_step = None if resumed is None else start
            sinks = Sinks(folder.path, recipe.reports, resume_step=resume_step)
            stack.callback(sinks.finish)
            state = StateFile(folder.path)
        progress = console.training_progress(
            training.total_steps,
            training.steps_per_epoch,
            job.quiet or not runtime.is_main(),
            start_step=start,
        )
        run = Run(
            job.recipe,
            folder,
            trainer,
            episode_loader=training.episode_loader,
            draw_fill=training.draw_fill(),
            files={**made_files(training.towers.values()), **training.files},
            evaluations=evaluations,
            saves=Saves(
                recipe.train,
                training.steps_per_epoch,
                training.total_steps,
                training.cooldown_start,
            ),
            sinks=sinks,
            state=state,
            progress=stack.enter_context(progress),
            interruption=interruption,
            url=job.url,
            saved_step=None if resumed is None else resumed.step,
        )
        yield stack.enter_context(run)


def _fit(run: Run, resumed: Checkpoint | None) -> bool:
    """Take the steps; whether the run is complete. One that is interrupted is saved."""
    try:
        # After a resume, what was due when the run was stopped.
        if resumed is None or not resumed.evaluated:
            run.evaluate(run.trainer.step_count)
        return run.ends_early or run.trainer.fit(run)
    except Interrupted:
        run.ensure_saved()
        return False


def _trainer(training: Training) -> Trainer:
    settings = training.recipe.train
    return Trainer(
        training.composition,
        training.optimizer,
        training.loader,
        settings,
        training.recipe.schedule,
        training.device,
        training.steps_per_epoch,
        training.total_steps,
        wrap=wrap_for_this_group(compile=settings.compile, shard=settings.shard == "towers"),
    )


def _refuse_diverged(trainer: Trainer, steps: int) -> None:
    """A run that could not learn does not end as if it had.

    Raises:
        UserError: most of its steps were not finite, or the last ones.
    """
    skipped = trainer.diverged_steps
    text = (
        f"{skipped} of {steps} steps were skipped because their loss or gradient was not finite."
        " Lower optimizer.lr, set train.clip_grad_norm, or use train.precision: bf16 or fp32."
    )
    if 2 * skipped > steps or (skipped and trainer.nonfinite_in_a_row >= 3):
        raise UserError(f"the run diverged: {text}")
    if skipped and runtime.is_main():
        console.warn(text)


def _say_duplicates(job: Job, training: Training) -> None:
    """How many captions of a step are another row's, where a text tower reads captions."""
    if job.quiet or not runtime.is_main():
        return
    towers = {key: training.towers[name] for key, name in training.composition.input_keys().items()}
    if not any(is_named(tower.modality) for tower in towers.values()):
        return
    fraction = training.loader.fraction_of_duplicates()
    if fraction is None:
        return
    advice = ""
    if fraction >= 0.01 and not training.composition.reads_caption_keys:
        advice = (
            " A contrastive loss takes them for negatives: see `positives: caption` of infonce and"
            " siglip, and `data.distinct: caption`."
        )
    console.say(f"Duplicate captions in a step: {fraction:.1%} of the rows.{advice}")


def _say_finished(job: Job, recipe: Recipe, trainer: Trainer, seconds: float, steps: int) -> None:
    rate = f", {steps / seconds:.1f} steps/s" if steps and seconds else ""
    skipped = f"; {trainer.skipped_steps} were skipped" if trainer.skipped_steps else ""
    _say(job, f"Trained {steps} steps in {seconds:.0f} s{rate}{skipped}.")
    # A trial run (`vlkd recipes smoke`) is quiet and leaves no record to read.
    if runtime.is_main() and not job.quiet and (outcome := outcome_line(read_run(Path(job.run)))):
        _say(job, outcome)
    _say(job, f"Run folder: {job.run}" + (f", copied to {job.url}" if job.url else ""))
    metrics = shlex.quote(str(Path(job.run) / "metrics.csv"))
    _say(job, f"Next: vlkd {_next_command(recipe, shlex.quote(job.run))}    or look into {metrics}")


def _next_command(recipe: Recipe, run: str) -> str:
    """A command that works on this run: an evaluation where there is data for one."""
    if recipe.evals:
        return f"eval {run}"
    modalities = {modality_of(recipe.towers, name) for name in recipe.towers}
    for suite in ("retrieval", "knn"):
        needed = attributes_of("suite", suite)["modalities"]
        if needed <= modalities and default_data(recipe, suite):
            return f"eval {run} --suite {suite}"
    return f"export {run} towers"


def _say(job: Job, text: str) -> None:
    if runtime.is_main() and not job.quiet:
        console.say(text)
