"""One training process: recipe -> towers -> composition -> trainer. What `vlkd train` runs on every
rank."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vlkd_cli import console
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.checkpoint import Checkpoint, resolve
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import Batch
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.distillers.distiller import DataFacts
from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.engine.build import (
    build_composition,
    build_towers,
    captions_of,
    made_files,
    say_sources,
)
from vlkd_cli.engine.inputs import build_loader, prepare_inputs
from vlkd_cli.engine.launching.host_memory import keep_freed_memory
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.launching.run_folder import RunFolder
from vlkd_cli.engine.optim import build_optimizer
from vlkd_cli.engine.periodic import Evaluations, Saves
from vlkd_cli.engine.trainer import Hooks, Trainer
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.recipe.address import Address, modality_of
from vlkd_cli.recipe.load import recipe_from_json
from vlkd_cli.recipe.types import Progress
from vlkd_cli.reports.open import Sinks
from vlkd_cli.reports.state import StateFile
from vlkd_cli.towers.tower import Tower


@dataclass(frozen=True)
class Job:
    """What a worker is told; plain values only, since it crosses a process boundary.

    Args:
        recipe: the recipe as JSON.
        run: the run folder, which exists.
        device: "auto", "cuda" or "cpu".
        resume: continue from the run's last checkpoint.
        dry_run: build everything, take one step, report sizes, write no checkpoint.
        quiet: print results and errors only.
    """

    recipe: str
    run: str
    device: str = "auto"
    resume: bool = False
    dry_run: bool = False
    quiet: bool = False


def train(job: Job) -> int:
    """Train, evaluate and save as the recipe says, on this rank of the group that is up.

    Returns:
        0 when the run is complete, else the number of the signal that stopped it after a save.

    Raises:
        UserError: what the user can mend; the last checkpoint is kept.
    """
    device = runtime.pick_device(job.device)
    if device.type == "cpu":
        keep_freed_memory()
    with Interruption().watched() as interruption:
        try:
            return _Run(job, device, interruption).go()
        except Interrupted:
            # Caches keep what they have.
            if runtime.is_main():
                console.say("Stopped before the first step; there was nothing to save.")
            return interruption.signal_number or signal.SIGINT


class _Run:
    def __init__(self, job: Job, device: torch.device, interruption: Interruption) -> None:
        self.job, self.device, self.interruption = job, device, interruption
        self.recipe = recipe_from_json(job.recipe)
        self.folder = RunFolder(Path(job.run))
        self.settings = self.recipe.train
        self.is_main = runtime.is_main()
        with interruption.dropping():
            self._build()

    def _build(self) -> None:
        recipe, settings = self.recipe, self.settings
        if recipe.data is None or not recipe.distillers:
            raise RecipeError(
                "this recipe trains nothing: it needs `data:` and `distillers:`. Evaluate it with"
                " `vlkd eval`."
            )
        if settings.sync_batch_norm and self.device.type != "cuda":
            raise RecipeError(
                "train.sync_batch_norm: torch synchronises batch norms on GPUs only. Set it to"
                " false to run on the CPU."
            )
        reader = open_reader(recipe.data)
        cache = cache_folder(settings.cache_dir)
        self.resumed = self._checkpoint_to_resume()
        self.towers = build_towers(
            recipe,
            captions=captions_of(reader) if self.resumed is None else None,
            run_folder=self.folder.path,
            cache_dir=cache,
            files={} if self.resumed is None else self.resumed.files,
        )
        if not self.job.quiet:
            say_sources(tower for tower in self.towers.values() if isinstance(tower, Tower))
        for tower in self.towers.values():
            if settings.sync_batch_norm and runtime.world_size() > 1:
                nn.SyncBatchNorm.convert_sync_batchnorm(tower)
            tower.to(self.device)
        self.inputs = prepare_inputs(recipe, reader, self.towers, self.device)
        # The composition knows which inputs a step reads, and the loader, built from that, how many
        # steps there are.
        self.composition = build_composition(
            recipe,
            self.inputs.towers,
            steps_per_epoch=1,
            total_steps=1,
            num_rows=len(reader) if isinstance(reader, Reader) else None,
        )
        self.loader = build_loader(recipe, self.composition, self.inputs, self.towers, self.device)
        self.steps_per_epoch = self.loader.batches_per_epoch // settings.accumulate
        self.total_steps = min(
            self.steps_per_epoch * settings.epochs, settings.steps or sys.maxsize
        )
        self.composition.steps_per_epoch, self.composition.total_steps = (
            self.steps_per_epoch,
            self.total_steps,
        )
        self.composition.to(self.device)
        if settings.channels_last:
            self.composition.to(memory_format=torch.channels_last)
        self._check_batch()
        self._check_data(reader)
        optimizer = build_optimizer(self.composition, recipe.optimizer, recipe.towers, self.device)
        self.trainer = Trainer(
            self.composition,
            optimizer,
            self.loader,
            settings,
            recipe.schedule,
            self.device,
            self.steps_per_epoch,
            self.total_steps,
        )

    def go(self) -> int:
        """Run to the end, or to the next safe place after a signal."""
        trainer, state = self.trainer, self._resumed_state()
        if self.job.dry_run:
            return self._dry_run()
        self.evaluations = Evaluations(
            self.recipe,
            self._towers_to_evaluate(),
            self.folder,
            self.device,
            self.steps_per_epoch,
            self.total_steps,
        )
        self.saves = Saves(self.settings, self.steps_per_epoch, self.total_steps)
        if state is not None:
            self.evaluations.best_value = state.best
        start = trainer.step_count
        self.sinks = (
            Sinks(self.folder.path, self.recipe.reports, resume_step=start if state else None)
            if self.is_main
            else None
        )
        self.state = StateFile(self.folder.path) if self.is_main else None
        self._note_progress(start, write=True)
        begin, finished = time.perf_counter(), False
        try:
            quiet = self.job.quiet or not self.is_main
            with console.training_progress(
                self.total_steps, self.steps_per_epoch, quiet, start_step=start
            ) as self.progress:
                trainer.hooks = Hooks(
                    self._before_epoch, self._after_step, self._log, self._note_skipped
                )
                if state is None:
                    self._evaluate(start)
                elif not state.evaluated:
                    # What was due when the run was stopped, and might have been the best.
                    self._save(evaluated=True, is_best=self._evaluate(start))
                finished = trainer.fit()
        except Interrupted:
            self._save(evaluated=False)
        finally:
            self.loader.close()
            if self.sinks is not None:
                self.sinks.finish()
            self._note_progress(trainer.step_count, write=True)
        if not finished:
            self._say(
                f"Stopped at step {trainer.step_count} of {self.total_steps}; saved in"
                f" {self.folder.path}. Go on with --resume."
            )
            return self.interruption.signal_number or signal.SIGTERM
        self._finish(time.perf_counter() - begin, trainer.step_count - start)
        return 0

    def _towers_to_evaluate(self) -> dict[str, Tower]:
        return {name: tower for name, tower in self.towers.items() if isinstance(tower, Tower)}

    def _check_batch(self) -> None:
        total = self.settings.batch_size * runtime.world_size()
        for objective in self.composition.objectives:
            if total < objective.distiller.minimum_batch:
                raise RecipeError(
                    f"distiller '{objective.name}' needs at least"
                    f" {objective.distiller.minimum_batch} samples a step over all processes and"
                    f" gets {total}. Raise train.batch_size."
                )

    def _check_data(self, reader: Reader | StreamReader) -> None:
        distillers = [objective.distiller for objective in self.composition.objectives]
        highest = None
        if isinstance(reader, Reader) and any("labels" in each.wants for each in distillers):
            highest = int(reader.labels_of(np.arange(len(reader))).max(initial=-1))
        facts = DataFacts(
            self.loader.batches_per_epoch * self.settings.batch_size * runtime.world_size(),
            num_rows=len(reader) if isinstance(reader, Reader) else None,
            highest_label=highest,
        )
        for distiller in distillers:
            distiller.check_data(facts)

    # -- around the steps

    def _before_epoch(self, epoch: int) -> None:
        if all(objective.arrow.episode is None for objective in self.composition.objectives):
            return
        with self.interruption.dropping():
            self._start_episode(epoch)

    @torch.no_grad()
    def _start_episode(self, epoch: int) -> None:
        """Embed the samples of the coming epoch for the distillers that cluster them."""
        from vlkd_cli.numerics.precision import autocast

        self.composition.eval()
        progress = Progress(self.trainer.step_count, self.steps_per_epoch, self.total_steps)
        wanted = [each for each in self.composition.objectives if each.arrow.episode is not None]
        collected: dict[str, list[list[torch.Tensor]]] = {
            objective.name: [] for objective in wanted
        }
        indices = []
        for batch in self.loader.batches(epoch):
            moved: Batch = batch.to(self.device)
            indices.append(moved.indices)
            for objective in wanted:
                with autocast(self.settings.precision, self.device):
                    outputs = [
                        self.composition.encode(a, moved.inputs[a.input_key]).float()
                        for a in objective.arrow.episode_addresses()
                    ]
                collected[objective.name].append(outputs)
        for objective in wanted:
            columns = dict(
                zip(
                    objective.arrow.episode_addresses(),
                    map(torch.cat, zip(*collected[objective.name], strict=True)),
                    strict=True,
                )
            )
            assert objective.arrow.episode is not None
            sides = {
                name: (
                    columns[side] if isinstance(side, Address) else tuple(columns[a] for a in side)
                )
                for name, side in objective.arrow.episode._asdict().items()
                if side is not None
            }
            start: Any = objective.distiller.start_episode
            for parameter in start(**sides, indices=torch.cat(indices), progress=progress):
                # Its moments belong to numbers that are gone.
                self.trainer.optimizer.state.pop(parameter, None)
        self.composition.train()

    def _after_step(self, step: int) -> bool:
        """Evaluate and save what is due; whether to stop, which is what all ranks agreed on before
        they saved."""
        asked_to_stop, due = self._agree(step)
        is_best = False
        if not asked_to_stop and self.evaluations.due(step):
            is_best = self._evaluate(step)
        if due or asked_to_stop or is_best:
            self._save(
                evaluated=not (asked_to_stop and self.evaluations.due(step)), is_best=is_best
            )
        return asked_to_stop

    def _agree(self, step: int) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether it is time to save: the same answer on
        every rank."""
        stop, due = self.interruption.signal_number is not None, self.saves.due(step)
        if runtime.world_size() == 1:
            return stop, due
        flags = torch.tensor([int(stop), int(due)])
        flags = collectives.sum_without_grad(flags)
        if flags[0] and self.interruption.signal_number is None:
            self.interruption.signal_number = signal.SIGTERM
        return bool(flags[0]), bool(flags[1])

    def _evaluate(self, step: int) -> bool:
        """Run what is due; whether the watched result is the best so far."""
        if not self.evaluations.due(step):
            return False
        self._share_statistics()
        with self.interruption.dropping():
            if self.trainer.ema is not None:
                with self.trainer.ema.applied():
                    values, is_best = self.evaluations.run(step)
            else:
                values, is_best = self.evaluations.run(step)
        if self.sinks is not None:
            self.sinks.log(step, values)
            self.progress.say(self.evaluations.one_line(step))
        if is_best and self.state is not None and self.evaluations.best_value is not None:
            self.state.note_best(self.evaluations.best_value, step)
        return is_best

    def _note_progress(self, step: int, *, write: bool = False) -> None:
        if self.state is not None:
            self.state.proceed(step, self.total_steps, write=write)

    def _share_statistics(self) -> None:
        """Batch-norm statistics differ between ranks while training; the first rank's are the
        run's."""
        if runtime.world_size() > 1:
            for tower in self.composition.towers.values():
                for buffer in tower.buffers():
                    collectives.broadcast_(buffer)

    def _log(self, step: int, values: Any) -> None:
        if self.sinks is not None:
            self.sinks.log(step, values)
        self._note_progress(step)
        self.progress.update(
            step,
            epoch=(step - 1) // self.steps_per_epoch,
            loss=values["train/loss"],
            lr=values["train/learning_rate"],
            samples_per_second=values["train/samples_per_second"],
            data_wait=values["train/data_wait"],
        )

    def _note_skipped(self, skipped: Any) -> None:
        self.folder.note_skipped(skipped, runtime.rank())

    def _save(self, *, evaluated: bool, is_best: bool = False) -> None:
        self.saves.done()
        if self.is_main:
            checkpoint = self.trainer.checkpoint(
                recipe=self.job.recipe,
                evaluated=evaluated,
                best=self.evaluations.best_value,
                files=made_files(self.towers.values()),
            )
            checkpoint.save(self.folder.checkpoints, is_best=is_best, keep=self.settings.keep)

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        if not self.job.resume:
            return None
        checkpoint = Checkpoint.load(resolve(self.folder.path, "last"))
        refuse_other_processes(checkpoint, runtime.world_size())
        return checkpoint

    def _resumed_state(self) -> Checkpoint | None:
        checkpoint = self.resumed
        if checkpoint is not None:
            self.trainer.restore(checkpoint)
            self._say(
                f"Continuing {self.folder.path} at step {checkpoint.step} of {self.total_steps}."
            )
        return checkpoint

    # -- reports

    def _dry_run(self) -> int:
        batches = self.loader.batches(0)
        begin = time.perf_counter()
        output, norm = self.trainer.step([next(batches) for _ in range(self.settings.accumulate)])
        seconds = time.perf_counter() - begin
        if self.is_main:
            rows = []
            for name, tower in self.towers.items():
                total, trainable = tower_sizes(tower)
                how = (
                    "stored features"
                    if name in self.inputs.stored
                    else ("follows" if isinstance(tower, MomentumTower) else "")
                )
                rows.append([name, f"{total:,}", f"{trainable:,}", str(tower.width), how])
            extra = sum(
                p.numel() for p in self.composition.distillers.parameters() if p.requires_grad
            )
            rows.append(["distillers", f"{extra:,}", f"{extra:,}", "", ""])
            console.print_table("Parameters", ["tower", "total", "trainable", "width", ""], rows)
            terms = ", ".join(f"{name} {float(term):.4f}" for name, term in output.terms.items())
            console.say(
                f"One step took {seconds:.2f} s: loss {float(output.loss):.4f} ({terms}), gradient"
                f" norm {norm:.3f}."
            )
            console.say(
                f"{self.steps_per_epoch} steps per epoch, {self.total_steps} in all; peak memory"
                f" {_peak_memory(self.device)}."
            )
        return 0

    def _finish(self, seconds: float, steps: int) -> None:
        if not self.is_main:
            return
        self.evaluations.print_last()
        rate = f", {steps / seconds:.1f} steps/s" if steps and seconds else ""
        skipped = (
            f" {self.trainer.skipped_steps} steps were skipped as not finite."
            if self.trainer.skipped_steps
            else ""
        )
        self._say(f"Trained {steps} steps in {seconds:.0f} s{rate}.{skipped}")
        if unread := self.folder.skipped_summary():
            console.warn(unread)
        self._say(f"Run folder: {self.folder.path}")
        run = shlex.quote(str(self.folder.path))
        metrics = shlex.quote(str(self.folder.path / "metrics.csv"))
        have = {modality_of(self.recipe.towers, name) for name in self.recipe.towers}
        if self.recipe.evals:
            command = f"eval {run}"
        elif {"image", "text"} <= have:
            command = f"eval {run} --suite retrieval"
        else:
            command = f"export {run} towers"
        self._say(f"Next: vlkd {command}    or look into {metrics}")

    def _say(self, text: str) -> None:
        if self.is_main and not self.job.quiet:
            console.say(text)


def refuse_other_processes(checkpoint: Checkpoint, processes: int) -> None:
    """A run goes on with the number of processes that it was trained on.

    Raises:
        CheckpointError: there are more or fewer.
    """
    if checkpoint.world_size != processes:
        raise CheckpointError(
            f"the run was trained on {checkpoint.world_size} processes and would continue on"
            f" {processes}; the batches would not be the same. Start it with"
            f" {checkpoint.world_size} processes."
        )


def tower_sizes(tower: Tower | MomentumTower) -> tuple[int, int]:
    """(parameters in all, those that learn), the frozen backbone counted."""
    if isinstance(tower, MomentumTower):
        return tower_sizes(tower.tower)[0], 0
    return tower.count_parameters()


def _peak_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on the GPU"
    import resource

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
