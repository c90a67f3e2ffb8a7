"""From the words of `vlkd train` to running workers: everything is checked before any process
starts."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd_cli import console
from vlkd_cli.engine.launching.byte_sizes import parse_bytes
from vlkd_cli.engine.launching.extension import (
    LENGTHS,
    extend,
    is_extension,
    refuse_extension,
    wait_for_extension,
)
from vlkd_cli.engine.launching.launch import Placement, quieten_libraries, run_workers
from vlkd_cli.engine.launching.run_folder import RunFolder, existing_run, fresh_run, latest_run
from vlkd_cli.engine.launching.run_record import asks_for_report, recorded
from vlkd_cli.errors import CheckpointError, RecipeError, UserError
from vlkd_cli.ranks import is_first, joins_running_job, num_processes
from vlkd_cli.recipe.difference import first_difference
from vlkd_cli.recipe.load import load_recipe, load_unchecked, origins_of
from vlkd_cli.recipe.messages import located
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.snapshot import recipe_to_json
from vlkd_cli.remote_runs import RemoteRun, is_url

if TYPE_CHECKING:
    from vlkd_cli.engine.worker import Job

LATEST = "latest"

# What may change between a run and its continuation without changing its numbers.
FREE_TO_CHANGE = {"reports", "evals"}
FREE_TRAIN_KEYS = {
    "save_every_steps",
    "save_every_epochs",
    "save_every_minutes",
    "save_in_background",
    "keep",
    "best",
    "log_every_steps",
    "cache_dir",
    "heartbeat_seconds",
    "checkpoint_activations",
    "shard",
    "patience",
    "min_delta",
}


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `vlkd train` was asked for; `commands/train.py` explains each option."""

    recipe: str | None = None
    overrides: Sequence[str] = ()
    gpus: int | None = None
    cpu_workers: int | None = None
    resume: str | None = None
    run: str | Path | None = None
    runs: Path = Path("runs")
    dry_run: bool = False
    memory: str | None = None
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    max_restarts: int = 0
    trust: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def name(self) -> str:
        """The recipe's name, which new run folders begin with."""
        return "" if self.recipe is None else Path(self.recipe).stem

    @property
    def url(self) -> str | None:
        """Where the run folder is copied to, if it is not a local one."""
        named = self.run if self.resume in (None, LATEST) else self.resume
        return str(named) if is_url(named) else None

    @property
    def num_processes(self) -> int:
        """How many processes train together."""
        if joins_running_job():
            return num_processes()
        return (self.gpus or self.cpu_workers or 1) * self.nodes

    @property
    def writes_the_folder(self) -> bool:
        """Whether this command is the one that prepares the run folder and holds its lock."""
        return is_first() and self.node_rank == 0


def start_training(request: TrainRequest) -> int:
    """Check what was asked for, prepare the run folder, start the workers.

    Returns:
        0, or the number of the signal that stopped the run after a save.
    """
    _refuse_idle_options(request)
    # The recipe before the machine: a misspelled key is reported without waiting for torch.
    recipe, folder = _recipe_and_folder(request)
    if not request.verbose:
        quieten_libraries()
    placement = replace(
        choose_placement(
            request.gpus,
            request.cpu_workers,
            request.nodes,
            request.node_rank,
            request.rendezvous,
            request.max_restarts,
        ),
        heartbeat_seconds=recipe.train.heartbeat_seconds,
    )
    # Stopped before its first save, a run starts again from its beginning.
    resumes = request.resume is not None and any(
        ".shard-" not in path.name for path in folder.checkpoints.glob("*.pt")
    )
    if resumes:
        _refuse_uneven_batches(folder, placement)
    from vlkd_cli.engine import worker

    with _prepared(folder, recipe, request):
        if resumes:
            _extend_if_longer(folder, recipe, request)
        if request.resume is not None and not resumes:
            console.say(f"{folder.path} has no checkpoint yet: starting from the beginning.")
        job = worker.Job(
            recipe=recipe_to_json(recipe),
            run=str(folder.path),
            device=placement.device,
            resume=resumes,
            dry_run=request.dry_run,
            memory=None if request.memory is None else parse_bytes(request.memory, "--memory"),
            quiet=request.quiet,
            origins=origins_of(request.recipe or folder.recipe, request.overrides),
            url=request.url,
        )
        # A group that the agent starts again continues from the last checkpoint; the first attempt
        # finds none.
        target = restartable if placement.max_restarts else worker.train
        speaks = request.writes_the_folder and not request.dry_run
        report = asks_for_report(recipe)
        with recorded(folder.path, resumed=resumes, first=speaks, report=report) as record:
            record.status = run_workers(target, job, placement, folder.logs)
        return record.status


def _refuse_idle_options(request: TrainRequest) -> None:
    """Options that are missing, or that would change nothing together with the others."""
    if request.recipe is None and request.resume in (None, LATEST):
        raise UserError(
            "name the recipe to train: `vlkd train RECIPE`; `vlkd recipes list` shows the shipped"
            " ones."
        )
    if request.trust and (request.resume is None or request.recipe is not None):
        raise UserError(
            "--trust has no effect here: your own recipe may name anything. It is for --resume RUN"
            " without a recipe."
        )
    if request.memory is not None:
        parse_bytes(request.memory, "--memory")
        if not request.dry_run:
            raise UserError("--memory has no effect without --dry-run. Add it, or leave this out.")
        if request.num_processes > 1:
            raise UserError(
                "--memory looks for the batch of one process, whatever their number. Leave --gpus,"
                " --cpu-workers and --nodes out."
            )
    if request.dry_run:
        for option, given in (
            ("--resume", request.resume is not None),
            ("--run", request.run is not None),
            ("--max-restarts", request.max_restarts > 0),
        ):
            if given:
                raise UserError(
                    f"{option} has no effect with --dry-run, which takes one step from the"
                    " beginning and leaves nothing. Leave one of the two out."
                )
    if request.run is not None and request.resume not in (None, LATEST):
        raise UserError(
            f"--run {request.run} has no effect with --resume {request.resume}. Leave it out."
        )
    if request.nodes == 1 and request.rendezvous is not None:
        raise UserError("--rendezvous has no effect without --nodes. Add it, or leave this out.")
    if joins_running_job():
        for option, given in (
            ("--nodes", request.nodes > 1),
            ("--max-restarts", request.max_restarts > 0),
        ):
            if given:
                raise UserError(
                    f"{option} has no effect under torchrun or SLURM, which start the processes"
                    " here. Give it to them instead."
                )
    shares = request.nodes > 1 or joins_running_job()
    if shares and request.run is None and request.resume is None and not request.dry_run:
        raise UserError(
            "every process of several machines, of torchrun and of SLURM must know the run's"
            " folder: give the same --run FOLDER everywhere, on a disk that all see (torchrun:"
            " `torchrun ... -m -- vlkd_cli train ...`)."
        )


def _refuse_parts_at_a_url(recipe: Recipe, source: str | Path, request: TrainRequest) -> None:
    """Each process writes its part of a checkpoint next to the others' parts."""
    if request.url is None or recipe.train.shard == "none":
        return
    text = (
        f"train.shard: the parts of a checkpoint are not copied to {request.url}. Give --run a"
        " folder that all processes see, or set train.shard to none."
    )
    raise RecipeError(located(text, origins_of(source, request.overrides)))


def _recipe_and_folder(request: TrainRequest) -> tuple[Recipe, RunFolder]:
    recipe = (
        load_recipe(request.recipe, request.overrides, to_train=request.num_processes)
        if request.recipe is not None
        else None
    )
    if recipe is not None:
        _refuse_parts_at_a_url(recipe, str(request.recipe), request)
    if recipe is not None and any(tower.soup is not None for tower in recipe.towers.values()):
        from vlkd_cli.engine.soups import decide_soups

        recipe = decide_soups(recipe)
    if request.resume is not None:
        folder = run_to_resume(request)
        if recipe is None:
            recipe = load_recipe(
                folder.recipe,
                request.overrides,
                foreign=not request.trust,
                to_train=request.num_processes,
            )
            _refuse_parts_at_a_url(recipe, folder.recipe, request)
        refuse_another_recipe(load_unchecked(folder.recipe), recipe, folder)
        return recipe, folder
    assert recipe is not None
    if request.dry_run:
        return recipe, RunFolder(Path(tempfile.mkdtemp(prefix="vlkd-dry-run-")))
    if request.url is not None:
        remote = RemoteRun(request.url)
        return recipe, RunFolder(remote.begin() if request.writes_the_folder else remote.folder)
    if request.run is not None:
        return recipe, RunFolder(Path(request.run))
    return recipe, fresh_run(request.name, request.runs)


@contextlib.contextmanager
def _prepared(folder: RunFolder, recipe: Recipe, request: TrainRequest) -> Iterator[None]:
    """The run folder, made, locked against other runs, with the recipe in it; a dry run's is
    removed at the end."""
    try:
        folder.create()
        with folder.locked() if request.writes_the_folder else contextlib.nullcontext():
            if request.writes_the_folder and request.resume is None:
                folder.refuse_another_run()
                folder.write_recipe(recipe)
            with _copied(request):
                yield
    finally:
        if request.dry_run:
            shutil.rmtree(folder.path, ignore_errors=True)


@contextlib.contextmanager
def _copied(request: TrainRequest) -> Iterator[None]:
    """Copy the run folder to its URL, at the beginning and, however the run ends, at the end."""
    if request.url is None or not request.writes_the_folder:
        yield
        return
    remote = RemoteRun(request.url)
    remote.push()
    try:
        yield
    except BaseException:
        with contextlib.suppress(CheckpointError):  # the reason of the end is what is reported
            remote.push()
        raise
    remote.push()


def _extend_if_longer(folder: RunFolder, recipe: Recipe, request: TrainRequest) -> None:
    before = load_unchecked(folder.recipe)
    if not is_extension(before, recipe):
        return
    if request.writes_the_folder:
        extend(folder, before, recipe)
    else:
        wait_for_extension(folder, recipe)


def _refuse_uneven_batches(folder: RunFolder, placement: Placement) -> None:
    from vlkd_cli.checkpoint import Checkpoint, resolve

    checkpoint = Checkpoint.load(resolve(folder.path, "last"))
    checkpoint.rows_per_process(
        num_processes() if joins_running_job() else placement.workers * placement.nodes
    )


def restartable(job: Job) -> int:
    """Train from the last checkpoint where there is one."""
    from vlkd_cli.engine import worker

    if job.url is not None:
        RemoteRun(job.url).fetch()  # every node continues from what reached the URL
    has_checkpoint = (Path(job.run) / "checkpoints" / "last.pt").exists()
    return worker.train(replace(job, resume=job.resume or has_checkpoint))


def choose_placement(
    gpus: int | None,
    cpu_workers: int | None,
    nodes: int = 1,
    node_rank: int = 0,
    rendezvous: str | None = None,
    max_restarts: int = 0,
) -> Placement:
    """Where workers run, checked against this machine.

    Raises:
        UserError: both kinds asked for, more GPUs than there are, or several machines without a
            meeting point.
    """
    import torch

    if gpus is not None and cpu_workers is not None:
        raise UserError("--gpus and --cpu-workers exclude each other.")
    if nodes > 1 and rendezvous is None:
        raise UserError(
            "--nodes needs --rendezvous HOST:PORT of the first machine, the same on every machine."
        )
    if rendezvous is not None:
        from vlkd_cli.distributed.meeting import parse_endpoint

        parse_endpoint(rendezvous)
    if node_rank >= nodes:
        raise UserError(
            f"--node-rank {node_rank} is out of range for --nodes {nodes}; it counts from 0."
        )
    available = torch.cuda.device_count()
    if gpus is not None and gpus > available:
        there = f"there are {available}" if available else "there is none"
        raise UserError(
            f"--gpus {gpus}: {there} on this machine. Use --cpu-workers {gpus} to run on the CPU."
        )
    device = "cpu" if cpu_workers is not None else ("cuda" if available else "cpu")
    return Placement(gpus or cpu_workers or 1, device, nodes, node_rank, rendezvous, max_restarts)


def run_to_resume(request: TrainRequest) -> RunFolder:
    """The run that `--resume [RUN]` means."""
    if request.url is not None:
        return RunFolder(RemoteRun(request.url).fetch())
    named = request.run if request.resume == LATEST else request.resume
    if named is None:
        return latest_run(request.runs, request.name)
    return existing_run(Path(named), request.runs)


def refuse_another_recipe(before: Recipe, now: Recipe, folder: RunFolder) -> None:
    """A run continues only with the recipe that it began with.

    Raises:
        CheckpointError: they differ in something that changes the numbers; names the first such
            key.
    """
    longer = is_extension(before, now)
    different = first_difference(_fixed(before, longer), _fixed(now, longer))
    if different is not None:
        key, was, is_now = different
        raise CheckpointError(
            f"{folder.path} was trained with {key} {was!r}; this recipe has {is_now!r}. Continue"
            f" with the run's own recipe (vlkd train --resume {folder.path}), or start a new run"
            " without --resume."
        )
    if longer:
        refuse_extension(before, now, folder)


def _fixed(recipe: Recipe, longer: bool) -> dict[str, object]:
    free = {*FREE_TRAIN_KEYS, *(LENGTHS if longer else ())}
    plain = {
        key: value
        for key, value in recipe.model_dump(mode="json").items()
        if key not in FREE_TO_CHANGE
    }
    plain["train"] = {key: value for key, value in plain["train"].items() if key not in free}
    if plain.get("data"):
        plain["data"] = {
            key: value for key, value in plain["data"].items() if key not in ("workers", "prefetch")
        }
    return plain
