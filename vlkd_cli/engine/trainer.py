"""The training loop. Knows steps and optimizers; not images, texts or losses."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from vlkd_cli.checkpoint import Checkpoint, load_problem
from vlkd_cli.composition.composition import Composition, StepOutput
from vlkd_cli.data.batch import Batch, Skipped
from vlkd_cli.distributed import collectives, runtime
from vlkd_cli.engine.determinism import seed_everything
from vlkd_cli.engine.ema import EMA
from vlkd_cli.engine.optim import optimizer_state, restore_optimizer, set_learning_rate
from vlkd_cli.engine.schedules import learning_rate_factor
from vlkd_cli.errors import CheckpointError, UserError
from vlkd_cli.numerics.precision import autocast, grad_scaler
from vlkd_cli.recipe.schema import ScheduleSpec, TrainSpec


class Loads(Protocol):
    """What the trainer wants of a loader."""

    batches_per_epoch: int

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


@dataclass
class Hooks:
    """What happens around steps; each is called on every rank, with the number of optimizer steps
    done.

    `after_step` answers whether to stop there, which has to be the same on every rank.
    """

    before_epoch: Callable[[int], None] = lambda epoch: None
    after_step: Callable[[int], bool] = lambda step: False
    log: Callable[[int, Mapping[str, float]], None] = lambda step, values: None
    skipped: Callable[[list[Skipped]], None] = lambda names: None


@dataclass
class Trainer:
    """Takes optimizer steps until the run is over or is asked to stop.

    Args:
        composition: what is trained; wrapped for several ranks here.
        optimizer: its groups carry `base_lr`.
        loader: gives every rank batches of equal size.
        hooks: evaluation, checkpoints and logging, called between steps.
        total_steps, steps_per_epoch: in optimizer steps.
    """

    composition: Composition
    optimizer: torch.optim.Optimizer
    loader: Loads
    settings: TrainSpec
    schedule: ScheduleSpec
    device: torch.device
    steps_per_epoch: int
    total_steps: int
    hooks: Hooks = field(default_factory=Hooks)
    step_count: int = 0
    skipped_steps: int = 0

    def __post_init__(self) -> None:
        self.scaler = grad_scaler(self.settings.precision, self.device)
        self.ema = EMA(self.composition, decay=self.settings.ema) if self.settings.ema else None
        self._module = self._wrap(self.composition)
        self._parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        self._nonfinite_in_a_row = 0
        # Libraries hand out their models in eval mode.
        self.composition.train()

    def fit(self) -> bool:
        """Train from `step_count` to `total_steps`, or until a hook asks to stop; False if one
        did."""
        try:
            while self.step_count < self.total_steps:
                epoch, done = divmod(self.step_count, self.steps_per_epoch)
                # A run resumed inside an epoch has what the epoch began with in its checkpoint.
                if done == 0:
                    self.hooks.before_epoch(epoch)
                if not self._train_epoch(epoch, done):
                    return False
            return True
        except Exception as error:
            error.vlkd_step = self.step_count + 1  # type: ignore[attr-defined]  # for the line that names a failed worker's step
            raise

    def step(self, batches: list[Batch]) -> tuple[StepOutput, float]:
        """One optimizer step over the batches of an accumulation; returns the mean output and the
        gradient norm.

        A step whose gradient is not finite leaves weights, queues and averages as they were.

        Raises:
            UserError: too many such steps in a row.
        """
        self._set_training()
        learning_rate = learning_rate_factor(
            self.schedule, self.step_count, self.steps_per_epoch, self.total_steps
        )
        set_learning_rate(self.optimizer, learning_rate)
        total: StepOutput | None = None
        for position, batch in enumerate(batches):
            seed_everything(self.settings.seed, "step", self.step_count, position, runtime.rank())
            is_last = position == len(batches) - 1
            with contextlib.nullcontext() if is_last else self._no_sync():
                with autocast(self.settings.precision, self.device):
                    output = self._module(batch.to(self.device), self.step_count)
                self.scaler.scale(output.loss / len(batches)).backward()
            total = _add(total, output, 1 / len(batches))
        assert total is not None
        return total, self._update()

    def checkpoint(
        self, *, recipe: str, evaluated: bool, best: float | None, files: dict[str, bytes]
    ) -> Checkpoint:
        """What resuming needs; see `Checkpoint` for the arguments."""
        composition = self.composition
        return Checkpoint(
            step=self.step_count,
            recipe=recipe,
            world_size=runtime.world_size(),
            global_batch=self.settings.batch_size * runtime.world_size(),
            towers={name: tower.trainable_state() for name, tower in composition.towers.items()},  # type: ignore[operator]
            followers=composition.followers.state_dict(),
            distillers=composition.distillers.state_dict(),
            ema=self.ema.state_dict() if self.ema else {},
            optimizer=optimizer_state(self.optimizer),
            scaler=self.scaler.state_dict(),
            files=files,
            evaluated=evaluated,
            best=best,
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
                tower.load_trainable_state(checkpoint.tower(name, averaged=False))  # type: ignore[operator]
            composition.followers.load_state_dict(checkpoint.followers)
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
        self.skipped_steps = checkpoint.skipped_steps

    def _train_epoch(self, epoch: int, done: int) -> bool:
        accumulate = self.settings.accumulate
        batches = self.loader.batches(epoch, start=done * accumulate)
        meter = _Meter()
        for _ in range(
            done, min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        ):
            with meter.waiting():
                drawn = [next(batches) for _ in range(accumulate)]
            names = [skipped for batch in drawn for skipped in batch.skipped]
            if names:
                self.hooks.skipped(names)
            output, norm = self.step(drawn)
            self.step_count += 1
            samples = sum(map(len, drawn)) * runtime.world_size()
            meter.count(samples)
            # Reading a number off a GPU waits for it, so values are collected only when they are
            # logged.
            if self.step_count % self.settings.log_every_steps == 0 or self.step_count in (
                1,
                self.total_steps,
            ):
                self.hooks.log(self.step_count, self._values(output, norm, epoch, meter))
            if self.hooks.after_step(self.step_count):
                return False
        return True

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

    def _update(self) -> float:
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients, foreach=True)
        norm, limit = total.item(), self.settings.clip_grad_norm
        finite = math.isfinite(norm)
        if finite:
            # Where nothing is cut, scaling by 1 would still read and write every gradient.
            if limit is not None and norm > 0.999 * limit:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, limit, total, foreach=True)
            self.scaler.step(self.optimizer)
            self.composition.commit(self.step_count)
            if self.ema is not None:
                self.ema.update()
            self._nonfinite_in_a_row = 0
        else:
            self.composition.discard()
            self.skipped_steps += 1
            self._nonfinite_in_a_row += 1
        self.scaler.update()
        for parameter in self._parameters:
            parameter.grad = None
        if self._nonfinite_in_a_row >= self.settings.max_nonfinite_steps:
            raise UserError(
                f"loss or gradient was not finite for {self._nonfinite_in_a_row} steps in a row,"
                f" the last at step {self.step_count + 1}. Lower optimizer.lr, set"
                " train.clip_grad_norm, or use train.precision: bf16 or fp32; the last good"
                " checkpoint is kept."
            )
        return norm

    def _values(
        self, output: StepOutput, norm: float, epoch: int, meter: _Meter
    ) -> dict[str, float]:
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
            "train/gradient_norm": norm,
            "train/epoch": (
                epoch + ((self.step_count - 1) % self.steps_per_epoch + 1) / self.steps_per_epoch
            ),
            "train/skipped_steps": float(self.skipped_steps),
            **meter.read(),
        }

    def _wrap(self, composition: Composition) -> nn.Module:
        module: nn.Module = composition
        if self.settings.compile:
            module = torch.compile(module)  # type: ignore[assignment]
        if runtime.world_size() == 1 or not any(
            parameter.requires_grad for parameter in composition.parameters()
        ):
            return module
        plain = self.settings.accumulate == 1
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            # Queues and centres are equal on every rank by construction; sending them each step
            # would cost more than the gradients.
            broadcast_buffers=False,
            static_graph=plain,
            find_unused_parameters=not plain,
        )

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self._module, nn.parallel.DistributedDataParallel):
            return self._module.no_sync()
        return contextlib.nullcontext()


class _Meter:
    """Throughput and the share of time spent waiting for data, since they were last read."""

    def __init__(self) -> None:
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def count(self, samples: int) -> None:
        self._samples += samples

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "train/samples_per_second": self._samples / elapsed,
            "train/data_wait": self._waited / elapsed,
        }
        self.__init__()  # type: ignore[misc]
        return values


def _add(total: StepOutput | None, output: StepOutput, share: float) -> StepOutput:
    terms = {name: term * share for name, term in output.terms.items()}
    if total is None:
        return StepOutput(output.loss.detach() * share, terms)
    return StepOutput(
        total.loss + output.loss.detach() * share,
        {name: total.terms[name] + term for name, term in terms.items()},
    )
