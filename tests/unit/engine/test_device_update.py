"""A step whose norm the host does not read is the step of a host that does; on the CPU, whose fused
optimizers obey `found_inf` as a GPU's do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.engine.test_trainer import Line, average, batch, broken_batch, step
from vlkd_cli.distillers.npid import NPID
from vlkd_cli.engine.device_update import DeviceUpdate, suits, unchanged_where
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.schema import ScheduleSpec, TrainSpec

CPU = torch.device("cpu")


class Queued(Line):
    """Its queue belongs to a distiller, as in a composition."""

    def __init__(self) -> None:
        super().__init__()
        self.distillers["queue"] = nn.Module()
        self.distillers["queue"].register_buffer("rows", self.queue)


def make(kind: type[torch.optim.Optimizer], waits: bool, **settings: Any) -> tuple[Trainer, Line]:
    """A trainer that waits for the norm at each step, or that does not."""
    line = Queued()
    optimizer: Any = kind
    keys = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    trainer = Trainer(
        line,  # type: ignore[arg-type]
        optimizer(
            [{"params": [("weight", line.weight)], "base_lr": 0.1}], lr=0.1, fused=True, **keys
        ),
        None,  # type: ignore[arg-type]
        TrainSpec.model_validate(settings),
        ScheduleSpec.model_validate({"name": "constant"}),
        CPU,
        steps_per_epoch=3,
        total_steps=6,
    )
    if not waits:
        trainer.device_update = DeviceUpdate(
            trainer.composition, trainer.optimizer, trainer.ema, trainer.settings, CPU
        )
    return trainer, line


def state(trainer: Trainer, line: Line) -> dict[str, Tensor]:
    """Everything a step changes."""
    values = {"weight": line.weight.detach(), "queue": line.queue, "average": average(trainer)}
    values |= {f"optimizer.{name}": value for name, value in momentum(trainer, line).items()}
    return {name: value.clone() for name, value in values.items()}


def momentum(trainer: Trainer, line: Line) -> dict[str, Tensor]:
    return dict(trainer.optimizer.state[line.weight])


KINDS = [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam]


@pytest.mark.parametrize("limit", [None, 0.3, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_a_host_that_reads_the_norm(
    kind: type[torch.optim.Optimizer], limit: float | None
) -> None:
    states, norms = [], []
    for waits in (True, False):
        trainer, line = make(kind, waits, ema=0.9, clip_grad_norm=limit)
        norms.append([float(step(trainer, batch(seed))[1]) for seed in (1, 2, 3)])
        states.append(state(trainer, line))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted(
    kind: type[torch.optim.Optimizer], value: float
) -> None:
    trainer, line = make(kind, waits=False, ema=0.9, clip_grad_norm=1.0)
    step(trainer, batch(1))
    before = state(trainer, line)
    _, norm = step(trainer, broken_batch(value))
    assert not math.isfinite(norm)
    assert trainer.device_update is not None and trainer.device_update.read() == (1, 1, 1)
    for name, found in state(trainer, line).items():
        assert torch.equal(found, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_first_step_leaves_no_trace_in_the_next(
    kind: type[torch.optim.Optimizer],
) -> None:
    states = []
    for batches in ([broken_batch(), batch(1)], [batch(1)]):
        trainer, line = make(kind, waits=False, ema=0.9)
        for each in batches:
            step(trainer, each)
        states.append(state(trainer, line))
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value), name


def test_after_too_many_skipped_steps_nothing_changes_until_the_host_has_noticed() -> None:
    trainer, line = make(torch.optim.AdamW, waits=False, ema=0.9, max_nonfinite_steps=2)
    for each in (batch(1), broken_batch(), batch(2), broken_batch(), broken_batch()):
        step(trainer, each)
    before = state(trainer, line)
    step(trainer, batch(3))
    for name, found in state(trainer, line).items():
        assert torch.equal(found, before[name]), name
    with pytest.raises(UserError, match="not finite for 2 consecutive steps, the last at step 5"):
        trainer.checkpoint(recipe="", evaluated=False, best=None, waited=0, files={})


def test_an_overflow_of_fp16_is_not_a_divergence() -> None:
    trainer, line = make(torch.optim.SGD, waits=False, precision="fp16", ema=0.9)
    assert trainer.device_update is not None
    first, weight = trainer.scaler.get_scale(), line.weight.tolist()
    # A scale under which the gradient overflows and the loss does not.
    line.weight.register_hook(lambda gradient: gradient * math.inf)
    step(trainer, batch(1))
    assert trainer.device_update.read() == (1, 1, 0)
    step(trainer, broken_batch())
    assert trainer.device_update.read() == (2, 2, 1)
    assert trainer.scaler.get_scale() == first / 4 and line.weight.tolist() == weight


def test_the_counts_of_a_resumed_run_continue() -> None:
    trainer, _ = make(torch.optim.SGD, waits=False, ema=0.9)
    trainer.skipped_steps = trainer._skipped_before = 4
    step(trainer, broken_batch())
    step(trainer, batch(1))
    checkpoint = trainer.checkpoint(recipe="", evaluated=False, best=None, waited=0, files={})
    assert (checkpoint.skipped_steps, trainer.nonfinite_in_a_row) == (5, 0)


def test_it_suits_fused_optimizers_on_a_gpu_without_banks_of_the_data_sets_size() -> None:
    line, gpu = Line(), torch.device("cuda")

    def suited(device: torch.device = gpu, **keys: Any) -> bool:
        optimizer = torch.optim.SGD([line.weight], lr=0.1, momentum=0.9, **keys)
        return suits(line, optimizer, device)  # type: ignore[arg-type]

    assert suited(fused=True)
    assert not suited(CPU, fused=True)
    assert not suited(fused=False)
    assert not suited(fused=True, dampening=0.1)
    line.distillers["bank"] = NPID()
    assert not suited(fused=True)


def test_what_became_of_tensors_stays_unless_it_is_skipped() -> None:
    for skip in (True, False):
        values = [torch.zeros(2), torch.tensor(1)]
        with unchanged_where(torch.tensor(skip), values):
            values[0].fill_(math.nan)
            values[1].add_(1)
        assert [int(values[0].isnan().all()), int(values[1])] == ([0, 1] if skip else [1, 2])
