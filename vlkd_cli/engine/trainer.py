"""The training loop. Knows steps and optimizers; not images, texts, losses or processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vlkd_cli.checkpoint import Checkpoint, load_problem
from vlkd_cli.composition.composition import Composition, StepOutput
from vlkd_cli.data.batch import Batch, Lost, Skipped
from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.distributed.sharding import divided_state
from vlkd_cli.engine.copies import Copies
from vlkd_cli.engine.determinism import seed_everything
from vlkd_cli.engine.device_update import DeviceUpdate, suits
from vlkd_cli.engine.ema import EMA
from vlkd_cli.engine.gradients import gradient_norm, gradient_scaler
from vlkd_cli.engine.optim import drop_waiting, optimizer_state, restore_optimizer, set_rates
from vlkd_cli.engine.parallel import Wrap, plain
from vlkd_cli.errors import CheckpointError, UserError
from vlkd_cli.numerics.precision import autocast, grad_scaler, matrix_precision
from vlkd_cli.recipe.schema import ScheduleSpec, TrainSpec
from vlkd_cli.recipe.types import Progress


class Loads(Protocol):
    """What the trainer needs of a loader."""

    batches_per_epoch: int

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


class Due(NamedTuple):
    """What follows a step; the same on every rank."""

    save: bool = False
    stop: bool = False


class Hooks:
    """What happens around steps, on every rank. `step` counts optimizer steps, from 1; this base
    does nothing."""

    def start_epoch(self, epoch: int) -> None:
        """Before the first step of an epoch; not where a resumed run is inside one."""

    def skipped(self, samples: Sequence[Skipped | Lost]) -> None:
        """Samples of the coming step could not be read and were replaced."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step that is logged."""

    def due(self, step: int) -> Due:
        """Whether to save and whether to stop here."""
        return Due()

    def save(self, step: int) -> None:
        """Write a checkpoint."""

    def evaluate(self, step: int) -> bool:
        """Evaluate what is due; a run that stops here does so when it is resumed. Whether the run
        is over before its last step, the same on every rank."""
        return False


@dataclass
class Trainer:
    """Takes optimizer steps until the run is over or is asked to stop.

    Args:
        composition: what is trained.
        optimizer: its groups carry `base_lr`.
        loader: gives every rank batches of equal size.
        total_steps, steps_per_epoch: in optimizer steps.
        wrap: how the composition is called on this process and others.
        skipped_steps: steps whose gradient was not finite, in the whole run. On a GPU this and the
            next two are read when a step is logged or saved.
        nonfinite_in_a_row: how many of the last steps were such.
        diverged_steps: those of this process for which the scale of fp16 was not the reason.
    """

    composition: Composition
    optimizer: torch.optim.Optimizer
    loader: Loads
    settings: TrainSpec
    schedule: ScheduleSpec
    device: torch.device
    steps_per_epoch: int
    total_steps: int
    wrap: Wrap = plain
    step_count: int = 0
    skipped_steps: int = 0
    nonfinite_in_a_row: int = field(default=0, init=False)
    diverged_steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        scaler = grad_scaler(self.settings.precision, self.device)
        self.scaler = gradient_scaler(scaler, self._parameters)
        self.ema = EMA(self.composition, decay=self.settings.ema) if self.settings.ema else None
        self.device_update: DeviceUpdate | None = None
        if suits(self.composition, self.optimizer, self.device):
            self.device_update = DeviceUpdate(
                self.composition, self.optimizer, self.ema, self.settings, self.device
            )
        self._skipped_before = self.skipped_steps
        self._wrapped = self.wrap(self.composition)
        self._copies = Copies(self.device)
        # Libraries hand out their models in eval mode.
        self.composition.train()

    @property
    def progress(self) -> Progress:
        """Where training is."""
        return Progress(self.step_count, self.steps_per_epoch, self.total_steps)

    def fit(self, hooks: Hooks) -> bool:
        """Train from `step_count` to `total_steps`, or until an evaluation ends the run; False if a
        hook asked to stop before. What goes wrong in a step is raised with its number as a note."""
        meter = _Meter()
        for batches in self._batches(hooks, meter):
            with _noting(self.step_count + 1):
                output, norm = self.step(batches)
            self.step_count += 1
            if self._is_logged(self.step_count):
                self._read_skipped()
                hooks.log(self.step_count, self._values(output, norm, meter))
            due = hooks.due(self.step_count)
            if due.save or due.stop:
                self._read_skipped()
                hooks.save(self.step_count)
            if due.stop:
                return False
            if hooks.evaluate(self.step_count):
                break
        return True

    def step(self, batches: Sequence[Batch]) -> tuple[StepOutput, Tensor]:
        """One optimizer step over the batches of an accumulation; returns the mean output and the
        gradient norm.

        A step whose gradient is not finite leaves weights, queues and averages as they were. On a
        GPU the host does not wait for the outcome.

        Raises:
            UserError: too many such steps in a row; on a GPU `fit` raises it at the next step that
                is logged or saved, and nothing changes until then.
        """
        self._set_training()
        set_rates(self.optimizer, self.schedule, self.progress)
        total: StepOutput | None = None
        for position, batch in enumerate(batches):
            seed_everything(self.settings.seed, "step", self.step_count, position, runtime.rank())
            is_last = position == len(batches) - 1
            with nullcontext() if is_last else self._wrapped.local(), self._multiplying():
                with autocast(self.settings.precision, self.device):
                    output = self._wrapped.call(self._copies(batch), self.progress)
                self.scaler.scale(output.loss / len(batches)).backward()
            total = _add(total, output, 1 / len(batches))
        assert total is not None
        self._wrapped.finish()
        return total, self._update(total.loss)

    def checkpoint(
        self,
        *,
        recipe: str,
        evaluated: bool,
        best: float | None,
        waited: int,
        files: dict[str, bytes],
    ) -> Checkpoint:
        """What resuming needs; see `Checkpoint` for the arguments."""
        composition = self.composition
        self._read_skipped()
        return Checkpoint(
            step=self.step_count,
            recipe=recipe,
            world_size=runtime.world_size(),
            global_batch=self.settings.batch_size * runtime.world_size(),
            towers={
                name: tower.trainable_state()  # type: ignore[operator]
                for name, tower in composition.towers.items()
            },
            followers=composition.followers.state_dict(),
            distillers=composition.distillers.state_dict(),
            ema=self.ema.state_dict() if self.ema else {},
            optimizer=optimizer_state(self.optimizer),
            scaler=self.scaler.state_dict(),
            files=files,
            evaluated=evaluated,
            best=best,
            waited=waited,
            skipped_steps=self.skipped_steps,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where the checkpoint was written.

        Raises:
            CheckpointError: it is of another recipe.
        """
        composition = self.composition
        try:
            for name, tower in composition.towers.items():
                state = checkpoint.tower(name, averaged=False, whole=False)
                tower.load_trainable_state(state)  # type: ignore[operator]
            composition.followers.load_state_dict(
                divided_state(checkpoint.followers, composition.followers)
            )
            composition.distillers.load_state_dict(checkpoint.distillers)
            restore_optimizer(self.optimizer, checkpoint.optimizer)
            self.scaler.load_state_dict(checkpoint.scaler)
            if self.ema is not None:
                self.ema.load_state_dict(checkpoint.ema)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not fit this recipe: {load_problem(error)}. Resume"
                " with the recipe that the run was started with."
            ) from error
        self.step_count = checkpoint.step
        self.skipped_steps = self._skipped_before = checkpoint.skipped_steps

    def _batches(self, hooks: Hooks, meter: _Meter) -> Iterator[list[Batch]]:
        """The batches of each step to come."""
        accumulate = self.settings.accumulate
        while self.step_count < self.total_steps:
            epoch, done = divmod(self.step_count, self.steps_per_epoch)
            if done == 0:
                hooks.start_epoch(epoch)
            batches = self.loader.batches(epoch, start=done * accumulate)
            meter.start()
            for _ in range(min(self.steps_per_epoch - done, self.total_steps - self.step_count)):
                with meter.waiting(), _noting(self.step_count + 1):
                    rows = [next(batches) for _ in range(accumulate)]
                skipped = [sample for batch in rows for sample in batch.skipped]
                if skipped:
                    hooks.skipped(skipped)
                meter.count(sum(map(len, rows)) * runtime.world_size())
                yield rows

    def _is_logged(self, step: int) -> bool:
        # Reading a number off a GPU waits for it, so values are collected only when they are
        # logged.
        return step % self.settings.log_every_steps == 0 or step in (1, self.total_steps)

    def _multiplying(self) -> AbstractContextManager[None]:
        return matrix_precision("high", self.device) if self.settings.tf32 else nullcontext()

    def _set_training(self) -> None:
        # Walking through all modules takes a while in a small step; an evaluation changes whole
        # towers.
        composition = self.composition
        parts = (
            composition,
            *composition.towers.values(),
            *composition.followers.values(),
            *composition.distillers.values(),
        )
        if not all(part.training for part in parts):
            composition.train()

    def _update(self, loss: Tensor) -> Tensor:
        drop_waiting(self.optimizer, self.step_count)
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self._parameters)
        if self.device_update is None:
            self._update_if_finite(norm, loss)
        else:
            self.device_update(norm, loss, self._commit)
        self.scaler.update()
        for parameter in self._parameters:
            parameter.grad = None
        self._refuse_divergence(self.step_count + 1)
        return norm

    def _update_if_finite(self, total: Tensor, loss: Tensor) -> None:
        norm, limit = total.item(), self.settings.clip_grad_norm
        if math.isfinite(norm):
            # Where nothing is cut, scaling by 1 would still read and write every gradient.
            if limit is not None and norm > 0.999 * limit:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, limit, total, foreach=True)
            self.scaler.step(self.optimizer)
            self._commit()
            self.nonfinite_in_a_row = 0
        else:
            self.composition.discard()
            self.skipped_steps += 1
            self.nonfinite_in_a_row += 1
            # A scale that is too large for fp16 is halved until the gradient is finite again.
            is_overflow = self.settings.precision == "fp16" and bool(loss.isfinite())
            self.diverged_steps += not is_overflow

    def _commit(self) -> None:
        self.composition.commit(self.progress)
        if self.ema is not None:
            self.ema.update()

    def _read_skipped(self) -> None:
        if self.device_update is not None:
            skipped = self.device_update.read()
            self.skipped_steps = self._skipped_before + skipped.steps
            self.nonfinite_in_a_row = skipped.in_a_row
            self.diverged_steps = skipped.diverged
            self._refuse_divergence(self.step_count)

    def _refuse_divergence(self, step: int) -> None:
        most = self.settings.max_nonfinite_steps
        # Read late, the count includes the steps that were skipped because of the others.
        surplus = self.nonfinite_in_a_row - most
        if surplus >= 0:
            raise UserError(
                f"loss or gradient was not finite for {most} consecutive steps, the last at step"
                f" {step - surplus}. Lower optimizer.lr, set"
                " train.clip_grad_norm, or use train.precision: bf16 or fp32; the last good"
                " checkpoint is still there."
            )

    def _values(self, output: StepOutput, norm: Tensor, meter: _Meter) -> dict[str, float]:
        names = ["loss", *output.terms]
        values = torch.stack(
            [output.loss.detach().float(), *(term.float() for term in output.terms.values())]
        )
        means = collectives.mean_without_grad(values).tolist()
        scales = {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        for name, parameter in self.composition.distillers.named_parameters():
            if parameter.ndim == 0:
                scales[f"train/{name}"] = float(parameter.detach())
        return {
            **scales,
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "train/gradient_norm": float(norm),
            "train/epoch": self.step_count / self.steps_per_epoch,
            "train/skipped_steps": float(self.skipped_steps),
            **meter.read(),
        }


class _Meter:
    """Throughput and the fraction of time spent waiting for data, since they were last read."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._started, self._waited, self._samples = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def count(self, samples: int) -> None:
        self._samples += samples

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        values = {
            "train/samples_per_second": self._samples / elapsed,
            "train/data_wait": self._waited / elapsed,
        }
        self.start()
        return values


@contextlib.contextmanager
def _noting(step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"step {step}")
        raise


def _add(total: StepOutput | None, output: StepOutput, share: float) -> StepOutput:
    terms = {name: term * share for name, term in output.terms.items()}
    if total is None:
        return StepOutput(output.loss.detach() * share, terms)
    return StepOutput(
        total.loss + output.loss.detach() * share,
        {name: total.terms[name] + term for name, term in terms.items()},
    )
