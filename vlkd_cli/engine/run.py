"""What happens around the steps of one run: values are logged, checkpoints written, suites run,
signals heard."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence

import torch

from vlkd_cli import console
from vlkd_cli.composition.episodes import is_episode_due, start_episode
from vlkd_cli.data.batch import Lost, Skipped
from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.distributed.sharding import divided_modules, whole_weights
from vlkd_cli.engine.draw_fill import DrawFill
from vlkd_cli.engine.launching.interruption import Interruption
from vlkd_cli.engine.launching.run_folder import RunFolder
from vlkd_cli.engine.periodic import Evaluations, Saves
from vlkd_cli.engine.saving import Saver
from vlkd_cli.engine.trainer import Due, Hooks, Loads, Trainer
from vlkd_cli.errors import CheckpointError
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.remote_runs import RemoteRun
from vlkd_cli.reports.sink import Sink
from vlkd_cli.reports.state import StateFile


class Run(Hooks):
    """The hooks of a run.

    Args:
        recipe: as JSON, for its checkpoints.
        episode_loader: gives the batches that the start of an episode reads.
        draw_fill: completes what stored towers lack of an epoch; None where there are none.
        files: what its towers need in addition to weights, for its checkpoints.
        sinks: where values go; None on all ranks but the first.
        state: the status of the run as a whole; None on all ranks but the first.
        url: where the run folder is copied to after each save.
        saved_step: the step of the checkpoint that the run was resumed from.
    """

    def __init__(
        self,
        recipe: str,
        folder: RunFolder,
        trainer: Trainer,
        *,
        episode_loader: Loads,
        draw_fill: DrawFill | None,
        files: dict[str, bytes],
        evaluations: Evaluations,
        saves: Saves,
        sinks: Sink | None,
        state: StateFile | None,
        progress: console.TrainingProgress,
        interruption: Interruption,
        url: str | None = None,
        saved_step: int | None = None,
    ) -> None:
        self.recipe, self.folder, self.trainer, self.files = recipe, folder, trainer, files
        self.episode_loader, self.draw_fill = episode_loader, draw_fill
        self.evaluations, self.saves = evaluations, saves
        self.sinks, self.progress, self.interruption = sinks, progress, interruption
        self.state = state
        self._saved_step = saved_step
        self.saver = Saver(
            folder.checkpoints,
            keep=trainer.settings.keep,
            in_background=trainer.settings.save_in_background,
            then=None if url is None else RemoteRun(url).push,
            is_divided=bool(divided_modules(trainer.composition)),
        )

    def __enter__(self) -> Run:
        self._note_progress(self.trainer.step_count, write=True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._note_progress(self.trainer.step_count, write=True)
        try:
            self.saver.wait()
        except CheckpointError as lost:
            if error is None:
                raise
            console.warn(str(lost))

    def start_epoch(self, epoch: int) -> None:
        trainer = self.trainer
        if self.draw_fill is not None and epoch:
            with self.interruption.dropping():
                self.draw_fill.complete(epoch - 1)
        if not is_episode_due(trainer.composition, trainer.progress):
            return
        batches = (batch.to(trainer.device) for batch in self.episode_loader.batches(epoch))
        with (
            self.interruption.dropping(),
            autocast(trainer.settings.precision, trainer.device),
        ):
            renewed = start_episode(trainer.composition, batches, trainer.progress)
        for parameter in renewed:
            # Its moments belong to numbers that are gone.
            trainer.optimizer.state.pop(parameter, None)

    def skipped(self, samples: Sequence[Skipped | Lost]) -> None:
        self.folder.note_skipped(samples, runtime.rank())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.sinks is not None:
            self.sinks.log(step, values)
        self._note_progress(step)
        self.progress.update(
            step,
            epoch=(step - 1) // self.trainer.steps_per_epoch,
            loss=values["train/loss"],
            lr=values["train/learning_rate"],
            samples_per_second=values["train/samples_per_second"],
            data_wait=values["train/data_wait"],
        )

    def due(self, step: int) -> Due:
        """Whether any rank was asked to stop, and whether it is time to save: agreed on before the
        checkpoint is written, so that all ranks stop at the same step."""
        save, stop = self.saves.due(step), self.interruption.signal_number is not None
        if runtime.world_size() > 1:
            flags = collectives.sum_without_grad(torch.tensor([int(save), int(stop)]))
            save, stop = bool(flags[0]), bool(flags[1])
        if stop and self.interruption.signal_number is None:
            self.interruption.signal_number = signal.SIGTERM
        return Due(save, stop)

    def save(self, step: int) -> None:
        """Write a checkpoint; what is due to be evaluated at this step still is."""
        self._write(step, evaluated=not self.evaluations.due(step), is_best=False)

    def evaluate(self, step: int) -> bool:
        """Run the suites that are due, and note the outcome in the checkpoint of this step.

        Where they fail, the step is saved first. Where `train.patience` ends the run, the step is
        saved and the suites of the end are run.
        """
        evaluations = self.evaluations
        if not evaluations.due(step):
            return False
        try:
            is_best = self._run_suites(step, evaluations.due(step))
            if not self.ends_early:
                if is_best or self._saved_step == step:
                    self._write(step, evaluated=True, is_best=is_best)
                return False
            self._write(step, evaluated=False, is_best=False)
            rest = evaluations.end_at(step)
            if rest:
                results = evaluations.last
                self._run_suites(step, rest)
                evaluations.last = [*results, *evaluations.last]
        except Exception:
            self.ensure_saved()
            raise
        self._write(step, evaluated=True, is_best=False)
        return True

    @property
    def ends_early(self) -> bool:
        """Whether `train.patience` ends the run before its last step."""
        return self.evaluations.watch.is_over and (
            self.trainer.step_count < self.trainer.total_steps
        )

    def ensure_saved(self) -> None:
        """Write a checkpoint of the last step unless there is one."""
        if self._saved_step != self.trainer.step_count:
            self.save(self.trainer.step_count)

    def _run_suites(self, step: int, specs: Sequence[EvalSpec]) -> bool:
        """Evaluate; whether `train.best` reached a new best value."""
        self._share_statistics()
        ema = self.trainer.ema
        with (
            self.interruption.dropping(),
            ema.applied() if ema else contextlib.nullcontext(),
            whole_weights(self.trainer.composition),
        ):
            values = self.evaluations.run(step, specs)
        watch = self.evaluations.watch
        is_best = watch.note(self.evaluations.last)
        if self.sinks is not None:
            self.sinks.log(step, values)
            self.progress.say(self.evaluations.one_line(step))
        if is_best and self.state is not None and watch.best is not None:
            self.state.note_best(watch.best, step)
        return is_best

    def _note_progress(self, step: int, *, write: bool = False) -> None:
        if self.state is not None:
            self.state.proceed(step, self.trainer.total_steps, write=write)

    def _share_statistics(self) -> None:
        """Batch-norm statistics differ between ranks while training; the first rank's are the
        run's."""
        composition = self.trainer.composition
        for tower in (*composition.towers.values(), *composition.followers.values()):
            for buffer in tower.buffers():
                collectives.broadcast_(buffer)

    def _write(self, step: int, *, evaluated: bool, is_best: bool) -> None:
        self.saves.done()
        self._saved_step = step
        if runtime.is_main() or divided_modules(self.trainer.composition):
            checkpoint = self.trainer.checkpoint(
                recipe=self.recipe,
                evaluated=evaluated,
                best=self.evaluations.watch.best,
                waited=self.evaluations.watch.waited,
                files=self.files,
            )
            self.saver.save(
                checkpoint,
                is_best=is_best,
                before_cooldown=step == self.saves.cooldown_start,
            )
